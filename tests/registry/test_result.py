"""A result can't be changed, and what it writes is whole, named and readable by others."""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch
from helpers import smooth
from safetensors.torch import load_file
from torch import Tensor

import sightline as sl
from sightline.images import io as images
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
    for part in ("panels", "values", "captions", "recipe", "pages"):
        with pytest.raises(TypeError, match="does not support item assignment"):
            getattr(result, part)["new"] = 1
        with pytest.raises(AttributeError):
            setattr(result, part, {})


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
    told = json.loads((tmp_path / "a" / "b" / "recipe.json").read_text(encoding="utf-8"))
    assert told == {"method": "test", "knobs": {"k": 3}, "captions": {"one": "One.", "two": "Two."}}
    assert "é" in (tmp_path / "a" / "b" / "values.json").read_text(encoding="utf-8")


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


@pytest.mark.parametrize("failing", ["save_file", "write_json"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failing_write_leaves_whole_files(
    failing: str,
    error: BaseException,
    result: Result,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = {path.name: path.read_bytes() for path in result.save(tmp_path / "whole")}

    def fail(_content: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    if failing == "save_file":
        monkeypatch.setattr("safetensors.torch.save_file", fail)
    else:
        monkeypatch.setattr(Path, "write_text", lambda path, *_, **__: fail(None, path))
    expected = sl.SightlineError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        result.save(tmp_path / "half")
    left = {path.name: path.read_bytes() for path in (tmp_path / "half").iterdir()}
    assert left.items() <= whole.items()
    assert {"one.png", "two.png"} <= left.keys() < whole.keys()


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
    drawn: list[list[str]] = []
    with mpl.rc_context():
        plt.switch_backend("agg")
        monkeypatch.setattr(
            plt, "show", lambda: drawn.append([axis.get_title() for axis in plt.gcf().axes])
        )
        result.show()
        plt.close("all")
    assert drawn == [["one", "two"]]


def test_a_file_is_never_seen_half_written(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    write = results.write

    def watched(image: Tensor, path: Path) -> None:
        write(image, path)
        seen.append(names(path.parent))

    monkeypatch.setattr(results, "write", watched)
    result.save(tmp_path)
    assert seen == [["one.png"], ["one.png", "two.png"]]
