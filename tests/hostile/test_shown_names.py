"""Names from outside in captions, figures, pages and on the terminal: on one line, escaped, cut."""

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import smooth
from torch import nn

import sightline as sl
from sightline.app.cli import execution
from sightline.app.cli.main import main
from sightline.app.cli.terminal import print_lines
from sightline.app.report.tour import TourReport
from sightline.images.plotting.captioned_rows import FigureRow, compose_figure_rows
from sightline.images.plotting.charts import draw_bar_chart
from sightline.images.plotting.maps import arrange_with_titles
from sightline.methods import load_methods
from sightline.models.zoo import load as zoo

LONG = "x" * 10_000
NAMES = (
    "two\nlines\r",
    "\x1b[2J\x1b]0;title\x07red",
    "<script>alert(1)</script>",
    "\u202egnp.exe\u2066",
    f"$\\frac{{{LONG}",
    "a$_$b$",
)
NEVER_SHOWN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def check_text(text: str) -> None:
    """One printable line, without a long name in it."""
    assert text.isprintable(), repr(text)
    assert max(map(len, text.split()), default=0) <= 200
    text.encode()


def check_page(page: str) -> None:
    assert not NEVER_SHOWN.search(page)
    assert "<script>alert" not in page
    assert LONG not in page


@pytest.fixture(scope="module")
def model() -> sl.Model:
    """A network of odd classes, odd layers and an odd name."""
    torch.manual_seed(0)
    network = nn.Sequential()
    for name, module in {
        "conv\n\x1b[2J": nn.Conv2d(3, 8, 3, padding=1),
        "relu": nn.ReLU(),
        f"conv2 <script>alert(1)</script> {LONG}": nn.Conv2d(8, 6, 3, padding=1),
        "relu2": nn.ReLU(),
        "gap": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "fc": nn.Linear(6, len(NAMES)),
    }.items():
        network.add_module(name, module)
    return sl.Model(
        network, name="net\n\x1b[2J" + LONG, mean=(0.5,) * 3, std=(0.25,) * 3, labels=NAMES, size=32
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose classes and files have such names, as far as a system lets them."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(12):
        name = NAMES[number % 4].replace("/", "\\")
        picture = root / name / f"{number} {name}.png"
        picture.parent.mkdir(exist_ok=True)
        sl.write(smooth(seed=number), picture)
    return root


# ── labels ──


def test_labels_are_shown_and_found_by_either_spelling(model: sl.Model) -> None:
    for number, name in enumerate(NAMES):
        check_text(model.labels[number])
        assert model.index(name) == model.index(model.labels[number]) == number
    assert len(model.labels[4]) == 200
    assert repr(model).isprintable()
    assert LONG not in repr(model)


def test_plain_labels_are_kept_as_they_are() -> None:
    labels = ["Straße", "猫", "می\u200cخواهم", "a b", "<b>"]
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5))
    assert list(sl.load(network, labels=labels, size=8).labels) == labels


def test_of_labels_that_differ_only_beyond_what_is_shown_the_number_is_asked_for() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3))
    model = sl.load(network, labels=[LONG + "1", LONG + "2", "c"], size=8)
    with pytest.raises(sl.SightlineError, match="give the number, 0 and 1"):
        model.index(LONG + "1")


# ── what methods return ──


# The shortest run of each method that may show a name.
RUNS: dict[str, dict[str, Any]] = {
    "predictions": {"k": 6},
    "saliency": {"label": NAMES[0], "samples": 2},
    "occlusion": {"label": [NAMES[1], NAMES[2]], "window": 16, "stride": 16},
    "rise": {"label": NAMES[4], "masks": 4},
    "gradcam": {"label": NAMES[3]},
    "cam": {"label": NAMES[5]},
    "segment": {"label": NAMES[2]},
    "activations": {},
    "guided": {},
    "adversarial": {"target": NAMES[1], "steps": 2},
    "boundary": {"cells": 3, "steps": 2},
    "synthesis": {"objective": "logit(1)", "steps": 2},
    "neighbors": {"k": 2},
    "embedding": {},
    "patches": {"k": 2},
    "labels": {},
}
OVER_DATASETS = ("neighbors", "embedding", "patches", "labels")


@pytest.mark.parametrize("name", RUNS)
def test_captions_pages_and_figures(name: str, model: sl.Model, photos: Path) -> None:
    parameters = dict(RUNS[name])
    if name in OVER_DATASETS:
        # Where a worker comes back to these tests, the photographs are others.
        store = photos.with_name(f"{photos.name}.scan")
        parameters |= {"folder": photos, "store": store}
    method = load_methods()[name]
    subject = (smooth(seed=3),) if method.subject == "image" else ()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        result = method.function(model, *subject, **parameters)
    assert result.captions
    for caption in result.captions.values():
        check_text(caption)
    for page in result.pages.values():
        check_page(page)
    for panel in result.panels.values():
        assert panel.isfinite().all()
    check_page(result._repr_html_())


def test_text_of_figures_is_no_formula_and_no_control_character() -> None:
    names = ["$\\frac{1", "a$_$", "\x1b[2J", "\u202eabc", "\ud800"]
    shown = ["$\\frac{1", "a$_$", "\\x1b[2J", "\\u202eabc", "\\ud800"]
    picture = torch.rand(1, 3, 40, 50)
    for name, text in zip(names, shown, strict=True):
        assert draw_bar_chart([name], [0.5]).equal(draw_bar_chart([text], [0.5]))
        row = FigureRow(name, [picture], [name])
        assert compose_figure_rows([row]).equal(
            compose_figure_rows([FigureRow(text, [picture], [text])])
        )
    assert arrange_with_titles(["", LONG], [picture, picture]).isfinite().all()


# ── pages and the terminal ──


def test_the_report(model: sl.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = f"{NAMES[0]}{NAMES[1]}.png"
    sl.write(smooth(side=32), "plain.png")
    Path("plain.png").rename(source)
    report = TourReport(model, smooth(side=32), source=source, label=NAMES[1], quick=True)
    only = ("predictions", "occlusion", "activations")
    plan = report.plan_sections
    monkeypatch.setattr(
        report,
        "plan_sections",
        lambda label: (section for section in plan(label) if section.method.name in only),
    )
    page = report.write_report(tmp_path / "tour", lambda *_: None)
    check_page(page.read_text(encoding="utf-8"))
    assert {section.method.name for section in report.sections} == set(only)


def test_the_terminal(
    model: sl.Model,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(execution, "load", lambda *_, **__: model)
    monkeypatch.setattr(zoo, "load", lambda *_, **__: model)
    (photos / NAMES[0] / "no picture\x1b[2J.png").write_bytes(b"text")
    store = "a.scan"
    sl.scan(model, photos, store=store)
    words = [
        ["layers"],
        ["store", "info", store],
        ["saliency", str(next(photos.rglob("*.png"))), "--label", NAMES[1], "--quiet"],
        ["stylizer", "apply", "painters", str(photos / NAMES[1]), "--size", "32", "--quiet"],
        ["patches", "--store", store, "--layer", "relu", "--unit", "1", "--quiet"],
    ]
    for command in words:
        status = main(command)
        shown = capsys.readouterr()
        assert status in (0, 1), command
        assert not NEVER_SHOWN.search(shown.out + shown.err), command
        assert LONG not in shown.out, command


def test_lines_are_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    print_lines("a\nb", "", "\ud800\x1b[2J")
    assert capsys.readouterr().out == "a\\nb\n\n\\ud800\\x1b[2J\n"
