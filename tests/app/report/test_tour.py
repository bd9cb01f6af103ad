"""The report: a page that stands alone, its sections, and commands that make each again."""

import base64
import json
import re
import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from helpers import LABELS, small_network, smooth
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import resnet18

import sightline as sl
from sightline.app.cli.application import make_app
from sightline.app.cli.main import main
from sightline.app.cli.options import unwrap_single_item
from sightline.app.report import tour
from sightline.app.report.tour import TourReport
from sightline.images.io import pictures as images
from sightline.methods import load_methods
from sightline.models.zoo import load
from sightline.models.zoo.builders import find_network_builder
from sightline.models.zoo.libraries.settings import BuiltNetwork, NetworkBuilder
from sightline.registry import method as catalog
from sightline.registry.method import METHODS, Method
from sightline.registry.parameter import ParameterSpec

VOID = {
    "area",
    "base",
    "br",
    "col",
    "embed",
    "hr",
    "img",
    "input",
    "link",
    "meta",
    "source",
    "track",
    "wbr",
}
RUNS = [
    f"{m.name}-{number + 1}" if len(m.tour_runs) > 1 else m.name
    for m in load_methods().values()
    for number in range(len(m.tour_runs))
]


@dataclass
class Element:
    """A tag with its attributes, its text, and what is inside."""

    tag: str
    attributes: dict[str, str]
    children: list["Element"] = field(default_factory=list)
    text: str = ""

    def all(self, tag: str) -> list["Element"]:
        """Every element of this kind inside, in order."""
        return [
            found
            for child in self.children
            for found in ([child] if child.tag == tag else []) + child.all(tag)
        ]

    def words(self) -> str:
        """Its text, white space folded."""
        return " ".join(self.text.split())


class Page(HTMLParser):
    """Reads a page and insists that every tag is closed in its order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.root = Element("root", {})
        self.open = [self.root]
        self.feed(text)
        self.close()
        assert self.open == [self.root], f"left open: {[element.tag for element in self.open[1:]]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len({name for name, _ in attrs}), f"an attribute twice: {attrs}"
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert tag == self.open[-1].tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data


def silent(_stage: str, _done: float) -> None:
    """No progress display."""


@dataclass(frozen=True)
class Report:
    """A finished report: folder, page as text and as elements, and the progress events."""

    folder: Path
    tour: TourReport
    text: str
    page: Element
    told: list[tuple[str, float]]

    @property
    def sections(self) -> dict[str, Element]:
        """The page's sections by name."""
        return {section.attributes["id"]: section for section in self.page.all("section")}


def reported(folder: Path, tour: TourReport) -> Report:
    """Writes and reads a report."""
    told: list[tuple[str, float]] = []
    written = tour.write_report(folder, lambda stage, done: told.append((stage, done)))
    assert written == folder / "index.html"
    text = written.read_text(encoding="utf-8")
    return Report(folder, tour, text, Page(text).root, told)


def shorten_methods(patch: pytest.MonkeyPatch, quick: dict[str, dict[str, Any]]) -> None:
    """Gives methods of the catalogue other parameters for a quick report."""
    for name, parameters in quick.items():
        patch.setitem(METHODS, name, replace(METHODS[name], quick_parameters=parameters))


@pytest.fixture(scope="module")
def report(tiny: sl.Model, photo: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A quick report on the small network."""
    with pytest.MonkeyPatch.context() as patch:
        shorten_methods(
            patch, {"synthesis": {"steps": 4}, "contrast": {"steps": 4}, "texture": {"side": 64}}
        )
        return reported(
            tmp_path_factory.mktemp("tour"), TourReport(tiny, photo, source="photo.png", quick=True)
        )


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> dict[str, Method]:
    """A catalogue of few methods with few steps."""
    kept: dict[str, dict[str, Any]] = {
        "predictions": {"k": 2},
        "filters": {"k": 2},
        "saliency": {},
        "synthesis": {"steps": 2},
    }
    catalogue = {
        name: replace(METHODS[name], quick_parameters=quick) for name, quick in kept.items()
    }
    monkeypatch.setattr(tour, "load_methods", lambda: catalogue)
    return catalogue


def fails_with(error: BaseException) -> Callable[..., sl.Result]:
    """A method that fails."""

    def fail(*_: Any, **__: Any) -> sl.Result:
        raise error

    return fail


# ── the page ──


def test_stands_alone(report: Report) -> None:
    check_alone(report.text, report.page)
    for frame in report.page.all("iframe"):
        assert frame.attributes.keys() == {"srcdoc", "title", "loading"}
        check_alone(frame.attributes["srcdoc"], Page(frame.attributes["srcdoc"]).root)


def check_alone(text: str, page: Element) -> None:
    """Asserts that a page loads nothing from elsewhere."""
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert not [e for tag in ("link", "object", "embed", "base", "form") for e in page.all(tag)]
    for element in (
        e
        for tag in ("a", "img", "script", "source", "video", "audio", "use")
        for e in page.all(tag)
    ):
        source = element.attributes.get("src", "data:image/")
        assert source.startswith("data:image/")
        assert element.attributes.get("href", "#").startswith("#")
        assert not {"srcset", "poster", "action", "background"} & element.attributes.keys()


def test_is_well_made(report: Report) -> None:
    assert report.text.startswith("<!doctype html>")
    (html,) = report.page.all("html")
    assert html.attributes["lang"] == "en"
    assert (
        len(report.page.all("h1"))
        == len(report.page.all("main"))
        == len(report.page.all("title"))
        == 1
    )
    identities = Counter(
        e.attributes["id"]
        for tag in ("section", "div", "h2", "figure")
        for e in report.page.all(tag)
        if "id" in e.attributes
    )
    assert set(identities.values()) == {1}
    anchors = {link.attributes["href"].removeprefix("#") for link in report.page.all("a")}
    assert anchors == {"main", *report.sections}
    for picture in report.page.all("img"):
        assert {"alt", "width", "height"} <= picture.attributes.keys()
        assert "enlarge" not in picture.attributes["alt"]
    for figure in report.page.all("figure"):
        assert figure.all("img")[0].attributes["alt"]
        assert figure.all("button")


def test_the_contents_list_every_section_in_order(report: Report) -> None:
    for label in ("Chapters", "Contents"):
        (contents,) = (
            nav for nav in report.page.all("nav") if nav.attributes["aria-label"] == label
        )
        chapters = contents.all("details")
        assert [chapter.all("summary")[0].words() for chapter in chapters] == [
            heading.words() for heading in report.page.all("h2")
        ]
        links = [link for chapter in chapters for link in chapter.all("a")]
        assert [link.attributes["href"][1:] for link in links] == list(report.sections)
        assert [link.words() for link in links] == [
            section.all("h3")[0].words() for section in report.sections.values()
        ]


def test_a_page_is_small(report: Report) -> None:
    assert len(report.text.encode()) < 3_000_000
    later = report.page.all("section")
    pictures = [picture for section in later for picture in section.all("img")]
    assert {picture.attributes.get("loading") for picture in pictures} == {"lazy"}


def test_charts_have_a_sensible_size(report: Report) -> None:
    charts = report.page.all("svg")
    assert len(charts) > 3
    for chart in charts:
        width, height = (int(chart.attributes[name]) for name in ("width", "height"))
        assert chart.attributes["viewbox"] == f"0 0 {width} {height}"
        assert width <= 520
        assert height <= 200
        assert chart.attributes["aria-label"]


def test_no_number_is_minus_zero(report: Report) -> None:
    assert not re.search(r"[-−]0\.0+(?![0-9])", report.page.all("main")[0].words())


def test_has_a_section_for_every_run_of_every_method(report: Report) -> None:
    assert list(report.sections) == RUNS
    for done in report.tour.sections:
        assert report.sections[done.folder].all("h3")[0].words() == done.title
    titles = [done.title for done in report.tour.sections]
    assert len(set(titles)) == len(titles), "no heading stands over two things"


def test_sections_say_what_they_show(report: Report) -> None:
    for done in report.tour.sections:
        shown, method = report.sections[done.folder], done.method
        assert method.question in shown.words()
        if done.refusal_reason:
            assert "Not shown" in shown.words()
            assert done.refusal_reason in shown.words()
            assert not shown.all("img")
            continue
        assert done.result
        captions = {
            name: " ".join(caption.split()) for name, caption in done.result.captions.items()
        }
        classes = [paragraph.attributes.get("class") for paragraph in shown.all("p")]
        if done.heatmap is None:
            for name in done.result.panels:
                assert captions[name] in shown.words()
        else:
            assert " ".join(done.heatmap.description.split()) in shown.words()
        for name in done.result.pages:
            assert captions[name] in shown.words()
        assert classes.count("caution") == 1
        assert " ".join(method.reading.split()) in shown.words()
        assert " ".join(method.caution.split()) in shown.words()
        assert [code.text for code in shown.all("code")] == [done.command]


def test_every_map_is_tested_beside_it(report: Report) -> None:
    tested = {done.folder for done in report.tour.sections if done.trust_summary}
    assert tested >= {"saliency", "gradcam", "guided-1"}
    assert not {"occlusion", "rise"} & tested, "a quick report leaves out what takes long"
    for done in report.tour.sections:
        tables = report.sections[done.folder].all("table")
        assert len(tables) == (1 if done.trust_summary else 0)
        if done.trust_summary:
            assert done.trust_summary.sentence in report.sections[done.folder].words()
            assert [row.all("td")[0].words() for row in tables[0].all("tr")[1:]] == [
                f"{row[2]:z.2f}" for row in done.trust_summary.rows
            ]
    told = json.loads((report.folder / "recipe.json").read_text(encoding="utf-8"))["trust"]
    assert set(told) == tested


def test_the_same_test_has_one_number(report: Report) -> None:
    by_folder = {done.folder: done for done in report.tour.sections}
    values = by_folder["trust"].result.values  # type: ignore[union-attr]
    numbers = by_folder["saliency"].trust_summary.numbers  # type: ignore[union-attr]
    for name in ("deletion_auc", "insertion_auc_chance", "rank_chance", "stability_rank"):
        assert numbers[name] == float(values[name][0])
    assert numbers["randomized_rank"] == float(values["cascade_rank"][0].quantile(0.5))


def test_the_photograph_stands_once_beside_its_attributions(report: Report) -> None:
    cells = [button for button in report.page.all("button") if "data-overlay" in button.attributes]
    mapped = [done for done in report.tour.sections if done.heatmap is not None]
    assert [cell.attributes["data-name"] for cell in cells] == [done.title for done in mapped]
    assert len({cell.attributes["data-overlay"] for cell in cells}) == len(cells)
    for done in mapped:
        assert not report.sections[done.folder].all("img")


def test_a_run_can_be_played(report: Report) -> None:
    (button,) = (
        button for button in report.page.all("button") if "data-movie" in button.attributes
    )
    kind, _, content = button.attributes["data-movie"].partition(",")
    assert kind == "data:image/webp;base64"
    assert base64.b64decode(content) == (report.folder / "synthesis-1" / "run.webp").read_bytes()


def test_refuses_only_what_does_not_fit(report: Report) -> None:
    assert [done.folder for done in report.tour.sections if done.refusal_reason] in (
        [],
        ["deepdream"],
    )


def test_pictures_and_numbers_lie_beside_it(report: Report) -> None:
    for done in report.tour.sections:
        folder, shown = report.folder / done.folder, report.sections[done.folder]
        if done.refusal_reason:
            assert not folder.exists()
            continue
        assert done.result
        assert all((folder / f"{name}.png").is_file() for name in done.result.panels)
        assert shown.all("code")
        assert (
            json.loads((folder / "values.json").read_text(encoding="utf-8")) == done.result.numbers
        )
        recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
        assert recipe["method"] == done.method.name
        assert (
            recipe["knobs"].items()
            >= {
                name: list(v) if isinstance(v, tuple) else v
                for name, v in done.parameters.items()
                if name != "image"
            }.items()
        )
    assert not [path for path in report.folder.rglob("*") if path.name.startswith(".")]


def test_recipe_tells_what_it_was_made_from(report: Report) -> None:
    told = json.loads((report.folder / "recipe.json").read_text(encoding="utf-8"))
    assert list(told["sections"]) == RUNS
    assert told["image"] == {"path": "photo.png", "size": None}
    assert (told["model"], told["label"], told["quick"]) == (
        dict(report.tour.model.recipe),
        "top",
        True,
    )
    assert images.read(report.folder / "image.png").shape == (1, 3, 32, 32)


def test_progress_goes_forward_to_the_end(report: Report) -> None:
    shares = [done for _, done in report.told]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, 1)
    assert all(stage for stage, _ in report.told)


def test_commands_parse_to_the_knobs_of_their_section(report: Report) -> None:
    app = make_app()
    for done in report.tour.sections:
        name, *words = shlex.split(done.command)
        command, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
        bound.apply_defaults()
        assert (name, command.__name__) == ("sightline", done.method.name)
        told = {
            name: unwrap_single_item(done.method.parameters[name].type, value)
            for name, value in bound.arguments.items()
            if name in done.method.parameters
        }
        assert (
            told.items()
            >= {name: value for name, value in done.parameters.items() if name != "image"}.items()
        )


def sample(knob: ParameterSpec) -> Any:
    """A value that a knob may have, another than its default where that is easy."""
    if knob.choices or isinstance(knob.default, bool):
        return knob.choices[-1] if knob.choices else not knob.default
    if knob.default is not None:
        return knob.default
    if any(
        get_origin(member) is tuple and float in get_args(member) for member in get_args(knob.type)
    ):
        return 3.0, 1.0
    return min(max(16, knob.value_range.low), knob.value_range.high) if knob.value_range else "3"


@pytest.mark.parametrize("method", load_methods().values(), ids=load_methods())
def test_every_knob_can_be_told_to_a_command(method: Method, report: Report) -> None:
    names = [
        name
        for name in method.parameters
        if name != "callback" and not (name == "size" and method.subject == "image")
    ]
    knobs = {name: sample(method.parameters[name]) for name in names}
    _, *words = shlex.split(report.tour.format_command(method, knobs, 3))
    _, bound, _ = make_app().parse_args(words, exit_on_error=False, print_error=False)
    for name, told in knobs.items():
        found = unwrap_single_item(method.parameters[name].type, bound.arguments[name])
        assert found == told or str(found) == told or found == (told,), name


def test_weights_that_the_networks_name_finds_are_not_in_the_command(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "resnet18.safetensors"
    save_file(resnet18().state_dict(), weights)
    model = sl.load("resnet18", weights=weights)
    tour = replace(report.tour, model=model)
    method = load_methods()["saliency"]
    assert f"--weights {weights}" in tour.format_command(method, {}, 3)
    monkeypatch.setenv("SIGHTLINE_WEIGHTS", str(tmp_path))
    assert "--weights" not in tour.format_command(method, {}, 3)


# ── on the embedded network, through the command ──


def find_small_builder(name: str) -> NetworkBuilder:
    """The builder of a network for pictures of 48 pixels."""
    builder = find_network_builder(name)

    def build(name: str, weights: str | None, options: dict[str, Any]) -> BuiltNetwork:
        built = builder(name, weights, options)
        built.settings["size"] = 48
        return built

    return build


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with one picture; the embedded network sees small ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(load, "find_network_builder", find_small_builder)
    images.write(smooth(side=80), "photo.png")
    return tmp_path


def test_every_command_makes_its_pictures_again(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short: dict[str, dict[str, Any]] = {
        "synthesis": {"steps": 2},
        "adversarial": {"steps": 2, "curve": 3},
        "deepdream": {"octaves": 1, "steps": 2},
        "occlusion": {"window": 16, "stride": 16},
        "texture": {"side": 64},
        "trust": {"steps": 4, "samples": 4, "stages": 2},
        "inversion": {"k": 2, "steps": 2},
        "rise": {"samples": 8},
        "contrast": {"steps": 2},
        "style": {
            "steps": 2,
            "style_scale": 1.5,
        },  # a painting of 32 pixels is too small for its deepest layer
    }
    shorten_methods(monkeypatch, short)
    # The evaluations beside attributions, which `report` has, are in no command's folder.
    monkeypatch.setattr(TourReport, "check_attribution", lambda *_: None)
    # The fixture `report` is over the tiles of the samples, of which there are hundreds.
    collection(Path("photos"), 12)
    images.write(smooth(side=24, seed=12), "photos/object.png")
    boxes = "file,label,x0,y0,x1,y1\nobject.png,church,3,4,15,20\n"
    Path("photos/boxes.csv").write_text(boxes, encoding="utf-8")
    words = "photo.png --quick --size 32 --label church --folder photos --out report --json"
    assert main(["tour", *words.split()]) == 0
    told = json.loads(capsys.readouterr().out)
    assert Path(told["report"]) == Path("report/index.html")
    assert list(told["sections"]) == RUNS
    sections = Page(Path("report/index.html").read_text(encoding="utf-8")).root.all("section")
    for section in sections:
        name, command = section.attributes["id"], section.all("code")[0].text
        assert main([*shlex.split(command)[1:], "--out", f"again/{name}"]) == 0, command
        made = {path.name: path.read_bytes() for path in Path(f"again/{name}").iterdir()}
        assert made == {
            path.name: path.read_bytes() for path in Path(f"report/{name}").iterdir()
        }, command
    once_more = sl.again("report/saliency/recipe.json").panels["saliency"]
    assert images.encode_png(once_more) == Path("report/saliency/saliency.png").read_bytes()


@pytest.mark.usefixtures("place", "brief")
def test_commands_bring_the_settings_of_a_network_of_ones_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = "--mean 0.4 0.5 0.6 --std 0.2 0.3 0.4 --labels ant,bee,cat,dog,elk"
    network = f"--model helpers:small_network {settings} --ablate conv1:2,5 --ablate-fill mean"
    words = f"tour photo.png --quick --size 32 {network} --out report"
    assert main(words.split()) == 0
    page = Page(Path("report/index.html").read_text(encoding="utf-8")).root
    for section in page.all("section"):
        name, command = section.attributes["id"], section.all("code")[0].text
        assert main([*shlex.split(command)[1:], "--out", f"again/{name}"]) == 0, command
        recipe = Path(f"again/{name}/recipe.json").read_bytes()
        assert recipe == Path(f"report/{name}/recipe.json").read_bytes(), command
    assert capsys.readouterr().err == ""


def test_ctrl_c_keeps_finished_sections(
    place: Path, brief: dict[str, Method], capsys: pytest.CaptureFixture[str]
) -> None:
    brief["saliency"] = replace(brief["saliency"], function=fails_with(KeyboardInterrupt()))
    assert main(["tour", "photo.png", "--quick", "--size", "32", "--out", "report"]) == 130
    assert capsys.readouterr().out.strip() == str(Path("report/index.html"))
    page = Page(Path("report/index.html").read_text(encoding="utf-8")).root
    assert [section.attributes["id"] for section in page.all("section")] == [
        name for name in RUNS if name.startswith(("predictions", "filters"))
    ]
    assert "The run was interrupted" in page.words()
    assert all(
        (place / "report" / section.attributes["id"] / "recipe.json").is_file()
        for section in page.all("section")
    )


@pytest.mark.usefixtures("place")
def test_files_that_can_not_be_written_are_told_after_ctrl_c_too(
    brief: dict[str, Method], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    brief["saliency"] = replace(brief["saliency"], function=fails_with(KeyboardInterrupt()))
    monkeypatch.setattr(sl.Result, "save", fails_with(sl.SightlineError("the disk is full")))
    assert main(["tour", "photo.png", "--quick", "--size", "32", "--out", "report"]) == 1
    assert "the disk is full" in capsys.readouterr().err


@pytest.mark.usefixtures("place")
def test_ctrl_c_before_the_first_section(
    brief: dict[str, Method], capsys: pytest.CaptureFixture[str]
) -> None:
    brief["predictions"] = replace(brief["predictions"], function=fails_with(KeyboardInterrupt()))
    assert main(["tour", "photo.png", "--quick", "--size", "32", "--out", "report"]) == 130
    assert capsys.readouterr() == ("", "sightline: interrupted\n")
    assert not Path("report/index.html").exists()


# ── what does not fit ──


@pytest.mark.usefixtures("brief")
def test_an_uninterrupted_page_says_nothing_of_it(
    tiny: sl.Model, photo: Tensor, tmp_path: Path
) -> None:
    done = reported(tmp_path, TourReport(tiny, photo, source="photo.png", quick=True))
    assert "interrupted" not in done.page.words()
    assert not done.tour.interrupted


def test_a_method_that_refuses_becomes_a_note(
    tiny: sl.Model, photo: Tensor, tmp_path: Path, brief: dict[str, Method]
) -> None:
    refusal = sl.SightlineError("no layer here has <places>; choose another network")
    brief["saliency"] = replace(brief["saliency"], function=fails_with(refusal))
    done = reported(tmp_path, TourReport(tiny, photo, source="photo.png", quick=True))
    words = done.sections["saliency"].words()
    assert "Not shown" in words
    assert str(refusal) in words
    assert not done.sections["saliency"].all("code")
    assert json.loads((tmp_path / "recipe.json").read_text(encoding="utf-8"))["sections"][
        "saliency"
    ] == {"refused": str(refusal)}
    assert len(done.sections) > 1
    assert not (tmp_path / "saliency").exists()


def test_a_bug_is_not_hidden(
    place: Path,
    brief: dict[str, Method],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG", logger="sightline.app.report.tour")
    error = ZeroDivisionError("of <nothing>\nby nothing")
    brief["saliency"] = replace(brief["saliency"], function=fails_with(error))
    assert main(["tour", "photo.png", "--quick", "--size", "32", "--out", "report"]) == 1

    reason = "ZeroDivisionError: of <nothing>"
    printed = capsys.readouterr()
    assert printed.out == "report/index.html\n"
    assert printed.err == f"sightline: 1 section failed: saliency ({reason})\n"
    page = Page(Path("report/index.html").read_text(encoding="utf-8")).root
    sections = {section.attributes["id"]: section for section in page.all("section")}
    expected = [name for name in RUNS if name.rsplit("-", 1)[0] in brief]
    assert list(sections) == expected, "the report goes on after a failure"
    assert f"This section failed: {reason}." in sections["saliency"].words()
    assert "unexpected error: Saliency" in page.words()
    assert "interrupted" not in page.words()
    assert not Path("report/saliency").exists()
    recipe = json.loads(Path("report/recipe.json").read_text(encoding="utf-8"))
    assert recipe["sections"]["saliency"] == {"failed": reason}
    (record,) = [item for item in caplog.records if item.exc_info]
    assert record.exc_info
    assert record.exc_info[1] is error


def test_a_failed_evaluation_keeps_the_picture(
    tiny: sl.Model,
    photo: Tensor,
    tmp_path: Path,
    brief: dict[str, Method],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tour, "summarize_trust", fails_with(ZeroDivisionError()))
    done = reported(tmp_path, TourReport(tiny, photo, source="photo.png", quick=True))
    assert "This section failed: ZeroDivisionError." in done.sections["saliency"].words()
    assert [button for button in done.page.all("button") if "data-overlay" in button.attributes], (
        "its map is among the attributions"
    )
    assert (tmp_path / "saliency" / "saliency.png").is_file()
    with pytest.raises(sl.SightlineError, match=r"1 section failed: saliency \(ZeroDivisionError"):
        done.tour.check_failures()


@pytest.mark.usefixtures("brief")
def test_names_are_text_whatever_they_hold(photo: Tensor, tmp_path: Path, report: Report) -> None:
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)>&amp;'
    labels = [f"{label} {evil}" for label in LABELS]
    model = sl.Model(small_network(), name=f"net {evil}", labels=labels, size=32)
    done = reported(
        tmp_path, TourReport(model, photo, source=f"{evil}.png", quick=True, label=labels[2])
    )
    assert len(done.page.all("script")) == len(report.page.all("script"))
    assert not [
        e
        for tag in ("img", "section", "div", "p", "a")
        for e in done.page.all(tag)
        if "onerror" in e.attributes
    ]
    title = done.page.all("h1")[0].words()
    assert title.startswith(f"net {evil} calls ")
    assert f"net {evil} calls " in done.page.all("title")[0].text
    assert labels[2] in done.page.all("strong")[0].words()
    command = next(
        shlex.split(section.all("code")[0].text)
        for name, section in done.sections.items()
        if name == "saliency"
    )
    assert f"{evil}.png" in command


def test_a_page_to_browse_is_inside_and_beside(
    tiny: sl.Model, photo: Tensor, tmp_path: Path, brief: dict[str, Method]
) -> None:
    page = '<!doctype html>\n<html lang="en"><p title="&amp;">"quoted" & more</p></html>\n'
    found = sl.Result(
        {"one": photo},
        {"k": 1},
        {"one": "One.", "map": "What to click."},
        {"versions": {"sightline": "0"}},
        {"map": page},
    )
    brief["filters"] = replace(brief["filters"], function=lambda *_, **__: found, tour_runs=({},))
    report = reported(tmp_path, TourReport(tiny, photo, source="photo.png"))
    (frame,) = report.sections["filters"].all("iframe")
    assert (
        frame.attributes["srcdoc"]
        == page
        == (tmp_path / "filters" / "map.html").read_text(encoding="utf-8")
    )
    assert "What to click." in report.sections["filters"].all("details")[0].words()


@pytest.mark.usefixtures("brief")
def test_label_is_the_predicted_class_unless_given(
    tiny: sl.Model, photo: Tensor, tmp_path: Path
) -> None:
    top = LABELS[int(tiny.logits(photo).argmax())]
    assert (
        reported(tmp_path, TourReport(tiny, photo, source="photo.png", quick=True))
        .page.all("strong")[0]
        .words()
        == top
    )
    other = next(label for label in LABELS if label != top)
    assert (
        reported(tmp_path, TourReport(tiny, photo, source="photo.png", quick=True, label=other))
        .page.all("strong")[0]
        .words()
        == other
    )


def test_sections_come_in_the_lectures_order(
    tiny: sl.Model, photo: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    backwards = dict(reversed(METHODS.items()))
    monkeypatch.setattr(catalog, "METHODS", backwards)
    plan = list(TourReport(tiny, photo, source="photo.png").plan_sections(3))
    assert [section.folder for section in plan] == RUNS
    assert {section.parameters.get("label", "dog") for section in plan} == {"dog"}


# ── over a folder of one's own ──


def collection(folder: Path, count: int) -> Path:
    """Small photographs in two classes."""
    for number, picture in enumerate(smooth(count, side=24)):
        images.write(
            picture[None], folder / ("even" if number % 2 == 0 else "odd") / f"{number:03}.png"
        )
    return folder


@pytest.fixture
def over(
    brief: dict[str, Method], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Method]:
    """A catalogue of two methods, one of them over a collection; a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("filters", "saliency", "synthesis"):
        del brief[name]
    brief["neighbors"] = replace(METHODS["neighbors"], quick_parameters={"k": 2})
    return brief


@pytest.mark.usefixtures("over")
def test_a_folder_is_what_neighbours_are_sought_in(
    tiny: sl.Model, photo: Tensor, tmp_path: Path
) -> None:
    folder = collection(tmp_path / "photos", 12)
    done = reported(
        tmp_path / "report",
        TourReport(tiny, photo, source="photo.png", quick=True, dataset_folder=str(folder)),
    )
    assert "use the 12 images of photos." in done.page.words()
    assert done.tour.sections[1].result
    assert "of 12 images" in done.sections["neighbors"].words()
    assert f"--folder {folder}" in done.tour.sections[1].command
    assert done.told[0][0].startswith("Scan: ")


@pytest.mark.usefixtures("over")
def test_of_a_large_folder_some_are_drawn_evenly(
    tiny: sl.Model, photo: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tour, "MAX_DATASET_IMAGES_QUICK", 4)
    folder = collection(tmp_path / "photos", 13)
    for name in ("one", "two"):
        done = reported(
            tmp_path / name,
            TourReport(tiny, photo, source="photo.png", quick=True, dataset_folder=str(folder)),
        )
        assert "use 4 of the 13 images of photos, evenly drawn." in done.page.words()
    (scanned,) = (tmp_path / "cache" / "sightline" / "scans").iterdir()
    found = sl.Scan.open(scanned)
    assert [Path(path).name for path in found.paths] == ["000.png", "008.png", "003.png", "011.png"]
    assert found.class_names == ["even", "odd"]
    text = json.loads((tmp_path / "two" / "recipe.json").read_text(encoding="utf-8"))
    assert text["folder"] == str(folder)


@pytest.mark.usefixtures("over")
@pytest.mark.parametrize(
    ("files", "why"),
    [
        ((), "there are no images in "),
        (("a.jpg", "b.jpg"), "none of the 2 files could be read; the first: a.jpg: "),
    ],
)
def test_a_folder_without_an_image_is_refused_at_once(
    files: tuple[str, ...], why: str, tiny: sl.Model, photo: Tensor, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    for name in files:
        (tmp_path / "photos" / name).write_text("words", encoding="utf-8")
    with pytest.raises(sl.SightlineError, match=why):
        TourReport(
            tiny, photo, source="photo.png", dataset_folder=str(tmp_path / "photos")
        ).write_report(tmp_path / "report", silent)
    assert not (tmp_path / "report").exists()
