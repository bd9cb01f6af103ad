"""A result can't be changed, shows itself, and what it writes is whole and readable by others."""

import base64
import io
import json
import os
import re
import subprocess
import sys
import webbrowser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch
from helpers import ROOT, smooth
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import sightline as sl
from sightline.images.io import pictures as images
from sightline.registry import result as results
from sightline.registry.result import Result, summarize_tensor


@pytest.fixture
def result() -> Result:
    """Two panels, and values of every kind."""
    values: dict[str, Any] = {
        "few": torch.arange(4),
        "many": torch.arange(20.0).view(4, 5),
        "score": 0.5,
        "labels": [["a", "é"]],
        "none": None,
    }
    panels = {"one": smooth(), "two": smooth(seed=1)}
    return Result(
        panels, values, {"one": "One.", "two": "Two."}, {"method": "test", "knobs": {"k": 3}}
    )


def names(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_is_frozen(result: Result) -> None:
    for name in ("panels", "values", "captions", "recipe", "pages", "movies"):
        with pytest.raises(TypeError, match="does not support item assignment"):
            getattr(result, name)["new"] = 1
        with pytest.raises(AttributeError):
            setattr(result, name, {})


def test_keeps_its_own_mappings() -> None:
    panels = {"one": smooth()}
    result = Result(panels, {})
    panels.clear()
    assert list(result.panels) == ["one"]
    assert dict(result.captions) == dict(result.recipe) == dict(result.pages) == {}


def test_save_writes_what_it_says(result: Result, tmp_path: Path) -> None:
    written = result.save(tmp_path / "a" / "b")
    assert [path.name for path in written] == [
        "one.png",
        "two.png",
        "values.json",
        "values.safetensors",
        "recipe.json",
    ]
    assert names(tmp_path / "a" / "b") == sorted(path.name for path in written)
    for name, panel in result.panels.items():
        assert (
            images.read(tmp_path / "a" / "b" / f"{name}.png") - panel
        ).abs().max() <= 0.5 / 255 + 1e-6
    stored = load_file(tmp_path / "a" / "b" / "values.safetensors")
    assert stored.keys() == {"few", "many"}
    assert all(torch.equal(stored[name], tensor) for name, tensor in result.tensors.items())
    assert (
        json.loads((tmp_path / "a" / "b" / "values.json").read_text(encoding="utf-8"))
        == result.numbers
    )
    recipe = json.loads((tmp_path / "a" / "b" / "recipe.json").read_text(encoding="utf-8"))
    assert recipe == {
        "method": "test",
        "knobs": {"k": 3},
        "captions": {"one": "One.", "two": "Two."},
    }
    assert "é" in (tmp_path / "a" / "b" / "values.json").read_text(encoding="utf-8")


def test_every_file_is_as_readable_as_any_other(result: Result, tmp_path: Path) -> None:
    (tmp_path / "any").touch()
    expected = (tmp_path / "any").stat().st_mode
    assert {path.stat().st_mode for path in result.save(tmp_path / "out")} == {expected}


def test_saving_twice_gives_the_same_bytes(result: Result, tmp_path: Path) -> None:
    first = [path.read_bytes() for path in result.save(tmp_path)]
    assert [path.read_bytes() for path in result.save(str(tmp_path))] == first


def test_tensors_are_saved_however_they_lie(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    values = {
        "turned": base.t(),
        "part": base[:, 1],
        "whole": base,
        "same": base,
        "grad": base.clone().requires_grad_(),
        "flags": base > 3,
    }
    Result({}, values).save(tmp_path)
    stored = load_file(tmp_path / "values.safetensors")
    assert all(torch.equal(stored[name], tensor) for name, tensor in values.items())


def test_a_page_is_written_beside_the_panels(tmp_path: Path) -> None:
    page = "<!doctype html>\n<p>é</p>\n"
    written = Result(
        {"one": smooth()}, {}, {"one": "One.", "map": "A map."}, pages={"map": page}
    ).save(tmp_path)
    assert [path.name for path in written] == ["one.png", "map.html", "values.json", "recipe.json"]
    assert (tmp_path / "map.html").read_text(encoding="utf-8") == page
    assert json.loads((tmp_path / "recipe.json").read_text(encoding="utf-8"))["captions"] == {
        "one": "One.",
        "map": "A map.",
    }


def test_without_tensors_there_is_no_tensor_file(tmp_path: Path) -> None:
    Result({}, {"score": 1.5}).save(tmp_path)
    assert names(tmp_path) == ["recipe.json", "values.json"]


def test_a_panel_that_is_no_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(sl.SightlineError, match="an image is"):
        Result({"one": smooth() * 2}, {}).save(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("failing", ["write_bytes", "write_text"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failing_write_leaves_nothing(
    failing: str,
    error: BaseException,
    result: Result,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(path: Path, *_: object, **__: object) -> None:
        with path.open("wb") as file:
            file.write(b"half")
        raise error

    monkeypatch.setattr(Path, failing, fail)
    expected = sl.SightlineError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        result.save(tmp_path / "new")
    assert names(tmp_path) == []


def test_a_failing_write_keeps_the_files_of_another_result(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in result.save(tmp_path)}

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save", fail)
    with pytest.raises(sl.SightlineError):
        Result({"one": smooth(seed=5)}, {"numbers": torch.zeros(99)}).save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_interrupted_move_has_moved_the_recipe(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace
    moved: list[str] = []

    def interrupt_third(source: Path, target: Path) -> None:
        if Path(source).parent != Path(target).parent:
            moved.append(Path(target).name)
            if len(moved) == 3:
                raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupt_third)
    with pytest.raises(KeyboardInterrupt):
        result.save(tmp_path / "new")
    assert moved[0] == "recipe.json"
    assert names(tmp_path / "new") == sorted(moved[:2])


def test_a_place_that_cannot_be_written_is_told(result: Result, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(sl.SightlineError, match="can't write"):
        result.save(tmp_path / "file")
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (torch.tensor(2.5), 2.5),
        (torch.tensor([True, False]), [True, False]),
        (torch.arange(16), list(range(16))),
        (torch.empty(0), []),
        (torch.arange(17), {"shape": [17], "min": 0.0, "max": 16.0, "mean": 8.0}),
        (torch.full((4, 5), -1.5), {"shape": [4, 5], "min": -1.5, "max": -1.5, "mean": -1.5}),
        (torch.tensor([True, False] * 10), {"shape": [20], "min": 0.0, "max": 1.0, "mean": 0.5}),
        (
            torch.full((100,), 60000.0, dtype=torch.float16),
            {"shape": [100], "min": 60000.0, "max": 60000.0, "mean": 60000.0},
        ),
        (torch.ones(20, requires_grad=True), {"shape": [20], "min": 1.0, "max": 1.0, "mean": 1.0}),
    ],
    ids=["scalar", "flags", "few", "none", "many", "matrix", "many-flags", "half", "grad"],
)
def test_summary(tensor: Tensor, expected: object) -> None:
    assert summarize_tensor(tensor) == expected
    assert json.loads(json.dumps(summarize_tensor(tensor))) == expected


def test_numbers_leave_plain_values_as_they_are(result: Result) -> None:
    assert result.numbers == {
        "few": [0, 1, 2, 3],
        "many": {"shape": [4, 5], "min": 0.0, "max": 19.0, "mean": 9.5},
        "score": 0.5,
        "labels": [["a", "é"]],
        "none": None,
    }


def test_show_draws_every_panel(result: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[list[str]] = []
    pages: list[str] = []
    monkeypatch.setattr(webbrowser, "open", pages.append)
    with mpl.rc_context():
        plt.switch_backend("agg")
        monkeypatch.setattr(
            plt, "show", lambda: titles.append([axis.get_title() for axis in plt.gcf().axes])
        )
        result.show()
        plt.close("all")
    assert titles == [["one", "two"]]


@pytest.mark.parametrize("display", ["", ":0"])
def test_without_windows_the_pictures_are_a_page(
    display: str,
    result: Result,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    opened: list[str] = []

    def open_page(address: str) -> bool:
        opened.append(address)
        return True

    monkeypatch.setattr(webbrowser, "open", open_page)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with mpl.rc_context():
        plt.switch_backend("agg")
        result.show()
    if display:
        page = Path(opened[0].removeprefix("file://"))
    else:
        assert opened == []
        page = Path(caplog.messages[0].rpartition(" ")[2])
    content = page.read_text(encoding="utf-8")
    assert content.count("<img") == 2
    assert "Two." in content
    assert plt.get_fignums() == []


def test_pictures_that_were_made_are_written_by_themselves(tmp_path: Path) -> None:
    images = smooth(count=2, side=24)[..., :18]
    files = Result({"sheet": smooth()}, {"image": images}).save(tmp_path)
    assert [file.name for file in files][:3] == ["sheet.png", "image_1.png", "image_2.png"]
    for number in (1, 2):
        read = sl.read(tmp_path / f"image_{number}.png")
        assert read.shape == (1, 3, 24, 18)
        assert (read[0] - images[number - 1]).abs().max() <= 0.5 / 255 + 1e-6


def test_bare_pictures_by_shape_and_opacity(tmp_path: Path) -> None:
    images = smooth(count=3, side=20)
    alpha = torch.linspace(0, 1, 400).view(1, 20, 20)
    with_alpha = Result({}, {"image": images[:1], "alpha": alpha})
    assert with_alpha.list_bare_pictures()["image"].shape == (1, 4, 20, 20)
    with_alpha.save(tmp_path)
    with Image.open(tmp_path / "image.png") as written:
        assert written.mode == "RGBA"
    by_style = Result({}, {"image": torch.stack([images, images], 1)})
    assert len(by_style.list_bare_pictures()) == 6
    many = Result({}, {"image": images[:1].expand(70, -1, -1, -1)})
    assert list(many.list_bare_pictures())[::63] == ["image_01", "image_64"]


@pytest.mark.parametrize(
    "image",
    [
        torch.full((1, 3, 8, 8), 1.2),
        torch.full((1, 3, 8, 8), float("nan")),
        torch.rand(1, 5, 8, 8),
        torch.rand(3, 8, 8),
        torch.empty(0, 3, 8, 8),
        "rocket",
    ],
    ids=["too bright", "nan", "bands", "no batch", "none", "a name"],
)
def test_what_is_no_picture_is_not_written_as_one(image: Any) -> None:
    assert Result({}, {"image": image}).list_bare_pictures() == {}


def test_a_panel_of_that_name_is_the_picture() -> None:
    result = Result({"image": smooth()}, {"image": smooth(seed=1)})
    assert result.list_bare_pictures() == {}


def test_a_file_is_never_seen_half_written(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names_after_each: list[list[str]] = []
    write = results.write

    def watched(image: Tensor, path: Path) -> None:
        write(image, path)
        names_after_each.append(names(path.parent))

    monkeypatch.setattr(results, "write", watched)
    result.save(tmp_path)
    assert names_after_each == [["one.png"], ["one.png", "two.png"]]


# ── how it shows itself ──


def test_repr_is_one_line(result: Result) -> None:
    assert repr(result) == (
        "<Result test; panels: one, two; "
        "values {few: 4, many: 4×5, score: 0.5, labels: list of 1, none: None}>"
    )
    assert repr(Result({}, {})) == "<Result panels: none; values {}>"


def test_repr_stays_short_and_on_one_line() -> None:
    values = {"text": "two\nlines" * 50, "number": 1 / 3, "scalar": torch.tensor(2.0)}
    result = Result({}, values, pages={"map": "<p>"}, movies={"zoom.gif": smooth(2)})
    text = repr(result)
    assert "\n" not in text
    assert len(text) < 200
    assert "number: 0.3333, scalar: scalar}; page: map; movie: zoom.gif>" in text


def read_html_pictures(page: str) -> list[Image.Image]:
    """The pictures inside a page."""
    pictures: list[Image.Image] = []
    for content in re.findall(r'src="data:image/(?:png|jpeg);base64,([^"]+)"', page):
        pictures.append(Image.open(io.BytesIO(base64.b64decode(content))))
    return pictures


def test_a_notebook_shows_panels_with_captions() -> None:
    panel = smooth()[..., :20, :30]
    result = Result({"one": panel, "two": 1 - panel}, {}, {"one": "First.", "two": "Second."})
    page = result._repr_html_()
    pictures = read_html_pictures(page)
    assert [picture.size for picture in pictures] == [(30, 20), (30, 20)]
    pixels = torch.tensor(list(pictures[1].tobytes())).view(20, 30, 3) / 255
    assert (pixels - (1 - panel[0]).permute(1, 2, 0)).abs().max() <= 0.5 / 255 + 1e-6
    assert page.index("First.") < page.index("Second.")
    assert "&lt;Result panels: one, two; values {}&gt;" in page


def test_words_in_a_notebook_are_escaped() -> None:
    name = '"><script>alert(1)</script>'
    page = Result({name: smooth()}, {"x": "<b>"}, {name: "<i>&"})._repr_html_()
    assert "<script>" not in page
    assert "&lt;i&gt;&amp;" in page
    assert "<b>'" not in page
    assert page.count("<img ") == 1


def test_large_pictures_are_reduced_in_a_notebook() -> None:
    noise = torch.rand(1, 3, 700, 1400, generator=torch.Generator().manual_seed(0))
    page = Result({"noise": noise, "flat": torch.full((1, 3, 2000, 10), 0.5)}, {})._repr_html_()
    noisy, flat = read_html_pictures(page)
    assert noisy.size == (640, 320)
    assert noisy.format == "JPEG", "as PNG it would be large"
    assert flat.size == (3, 640)
    assert flat.format == "PNG"
    assert len(page) < 400_000


@pytest.mark.slow
def test_shapes_of_values_type_check(tmp_path: Path) -> None:
    """Pyright in strict mode takes `result.values["drop"].shape`. `make types` tries it, too."""
    code = Path(__file__).with_name("typed_values.py").read_text(encoding="utf-8")
    (tmp_path / "user.py").write_text(code, encoding="utf-8")
    settings = {
        "typeCheckingMode": "strict",
        "include": ["user.py"],
        "extraPaths": [str(ROOT / "src")],
        "pythonVersion": f"{sys.version_info.major}.{sys.version_info.minor}",
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", sys.executable],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
