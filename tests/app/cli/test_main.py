"""The command line: what it prints and writes, how it refuses, and what an interrupt leaves."""

import json
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from cyclopts import CycloptsError
from helpers import smooth

import sightline as sl
from sightline.app.cli import execution, terminal
from sightline.app.cli import methods as commands
from sightline.app.cli.application import GENERAL_COMMANDS, make_app
from sightline.app.cli.commands import general
from sightline.app.cli.declarations import read_method_declarations
from sightline.app.cli.main import main
from sightline.images.io import pictures as images
from sightline.images.io.library import ASSETS_FOLDER
from sightline.methods import load_methods
from sightline.models.zoo import load as zoo
from sightline.models.zoo import reload as recipe

SMALL = ("photo.png", "--size", "64")


@dataclass(frozen=True)
class Ran:
    """What a command gave back and printed."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with one picture and some files that are none."""
    monkeypatch.chdir(tmp_path)
    images.write(smooth(side=80), "photo.png")
    Path("note.jpg").write_text("This is no photograph.\n", encoding="utf-8")
    Path("empty.png").touch()
    Path("folder").mkdir()
    Path("text.json").write_text("recipe", encoding="utf-8")
    Path("list.json").write_text("[1, 2]", encoding="utf-8")
    Path("other.json").write_text(
        '{"method": "saliency", "knobs": 3, "model": "sightnet"}', encoding="utf-8"
    )
    Path("method.json").write_text(
        '{"method": "salience", "knobs": {}, "model": {"model": "sightnet"}}', encoding="utf-8"
    )
    Path("weights.pt").write_bytes(b"no weights")
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""

    def call(*words: str) -> Ran:
        capsys.readouterr()
        code = main(words)
        return Ran(code, *capsys.readouterr())

    return call


@pytest.fixture(autouse=True, scope="module")
def networks_once() -> Iterator[None]:
    """The embedded network is read from disk once for the whole file."""
    patch, ready, read = pytest.MonkeyPatch(), zoo.load(), zoo.load

    def load(name: str = "sightnet", **given: Any) -> sl.Model:
        return ready if name == "sightnet" and not any(given.values()) else read(name, **given)

    for module in (zoo, recipe, execution):
        patch.setattr(module, "load", load)
    yield
    patch.undo()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# ── help ──


HEAVY_MODULES = ("torch", "torchvision", "timm", "numpy", "PIL", "matplotlib", "skimage", "jinja2")
LIGHT_COMMANDS = [
    ["--help"],
    ["--version"],
    ["samples"],
    ["models"],
    ["models", "resnet", "--json"],
    *[[name, "--help"] for name in (*GENERAL_COMMANDS, *read_method_declarations())],
]


def test_help_and_lists_import_no_heavy_module() -> None:
    script = (
        "import json, sys\n"
        "from sightline.app.cli.main import main\n"
        "commands, heavy = json.loads(sys.argv[1])\n"
        "for words in commands:\n"
        "    status = main(words)\n"
        "    imported = sorted(set(heavy) & set(sys.modules))\n"
        "    print(json.dumps([words, status, imported]), file=sys.stderr)\n"
    )
    argument = json.dumps([LIGHT_COMMANDS, HEAVY_MODULES])
    completed = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, argument],
        capture_output=True,
        text=True,
        check=True,
    )
    reports = [json.loads(line) for line in completed.stderr.splitlines()]
    assert reports == [[words, 0, []] for words in LIGHT_COMMANDS]


def test_the_installed_command(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("sightline")
    if not command.exists():
        pytest.skip("sightline is not installed as a command beside this interpreter")
    done = subprocess.run(
        [command, "--version"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_help_lists_every_command_with_its_summary(run: Run) -> None:
    shown = run("--help")
    assert (shown.code, shown.err) == (0, "")
    assert all(name in shown.out for name in (*GENERAL_COMMANDS, *load_methods()))


@pytest.mark.parametrize("name", GENERAL_COMMANDS)
def test_faces_have_help_and_the_summary_they_announce(name: str, run: Run) -> None:
    shown = run(name, "--help")
    assert shown.code == 0
    assert (getattr(general, name).__doc__ or "").split("\n")[0] == GENERAL_COMMANDS[name]


def test_commands_are_not_made_up() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nosuch'"):
        _ = commands.nosuch


# ── usage ──


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("filtres",), 'Did you mean "filters"'),
        (("nosuch",), "Unknown command"),
        (("filters", "--laier", "first"), "Did you mean --layer"),
        (("occlusion", *SMALL, "--window", "many"), "--window"),
        (("guided", *SMALL, "--rule", "guidd"), 'Did you mean "guided"'),
        (("filters", "sightnet", "--layer"), "--layer"),
        (("saliency", "photo.png", "other.png"), "other.png"),
        (("saliency", "photo.png", "--size", "0"), "--size"),
        (("saliency", "photo.png", "--size", "-5"), "--size"),
        (("saliency", "photo.png", "--size", "100000"), "--size"),
        (("again",), "RECIPE"),
        (("tour", "--callback", "print"), "--callback"),
        (("synthesis", "--callback", "print"), "--callback"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_usage_errors_exit_2(words: tuple[str, ...], said: str, run: Run, place: Path) -> None:
    before = contents(place)
    ran = run(*words)
    assert (ran.code, ran.out) == (2, "")
    assert said.casefold() in " ".join(ran.err.replace("│", " ").split()).casefold()
    assert contents(place) == before


# ── refusals ──

REFUSED: dict[tuple[str, ...], str] = {
    ("filters", "nosuchnet"): "no network named 'nosuchnet'",
    ("filters", "resnet5O"): "no network named 'resnet5O'; did you mean resnet50?",
    ("filters", "sightnet", "--layer", "conv53"): "no layer named 'conv53'; did you mean conv5_",
    (
        "filters",
        "sightnet",
        "--layer",
        "fc",
    ): "fc is fully connected, it has no filters with a shape",
    ("filters", "sightnet", "--k", "0"): "k is 0; it must lie between 1 and 1024",
    ("filters", "sightnet", "--weights", "nosuch.pt"): "no weights file nosuch.pt",
    ("filters", "sightnet", "--weights", "weights.pt"): "weights.pt is",
    ("filters", "sightnet", "--device", "gpu0"): "the device 'gpu0' can't be used here",
    (
        "activations",
        *SMALL,
        "--layers",
        "conv1",
        "conv2_11",
    ): "no layer named 'conv2_11'; did you mean conv2_1?",
    ("saliency", *SMALL, "--label", "churhc"): "no label named 'churhc'; did you mean church?",
    ("saliency", *SMALL, "--label", "99"): "label is 99; sightnet has classes 0 to 9",
    ("saliency", *SMALL, "--label", "-1"): "label is -1; sightnet has classes 0 to 9",
    ("saliency", "note.jpg"): "note.jpg: not an image in a known format",
    ("saliency", "empty.png"): "empty.png: an empty file",
    ("saliency", "folder"): "folder: a folder, not an image file",
    ("saliency", "phto.png"): "phto.png: no such file; did you mean photo.png?",
    ("saliency", "no/such.png"): "such.png: no such file; there is no folder no",
    ("saliency", "a\nb.png"): r"a\nb.png: no such file",
    ("occlusion", *SMALL, "--window", "65"): "window is 65; it must lie between 1 and 64",
    ("occlusion", *SMALL, "--fill", "nan"): "fill is nan",
    ("gradcam", *SMALL, "--layer", "logits"): "the logits have no positions in the image",
    (
        "guided",
        *SMALL,
        "--layer",
        "last_conv",
        "--unit",
        "4096",
    ): "unit is 4096; last_conv has units 0 to",
    ("deepdream", *SMALL, "--octaves", "9"): "octaves is 9; an image of 64×64 pixels allows",
    ("adversarial", *SMALL, "--target", "ostrich"): "no label named 'ostrich'",
    ("adversarial", *SMALL, "--eps", "-1"): "eps is -1.0; it must lie between 1e-06 and 1000000",
    (
        "style",
        *SMALL,
        "--styles",
        "great_wave",
        "scream",
        "--mix",
        "1",
        "-2",
    ): "mix is (1.0, -2.0); it must be one share for each of the 2",
    (
        "style",
        *SMALL,
        "--styles",
        "great_wave",
        "scream",
        "--mix",
        "1",
    ): "mix is (1.0,); it must be one share for each of the 2",
    (
        "style",
        *SMALL,
        "--styles",
        "great_wave",
        "scream",
        "--masks",
        "photo.png",
    ): "1 masks were given for 2 styles",
    ("texture", *SMALL, "--method", "gatys", "--layers", "relu9"): "no layer named 'relu9'",
    (
        "texture",
        *SMALL,
        "--method",
        "patchmatch",
        "--side",
        "8192",
    ): "GB, more than memory=4; raise memory",
    ("synthesis", "ostrich"): "no label named 'ostrich'",
    ("synthesis", "channel('conv9_1', 3)"): "no layer named 'conv9_1'",
    ("synthesis", "logit("): "can't be read",
    ("synthesis", "chanel('conv1', 3)"): "chanel",
    (
        "synthesis",
        "--blur",
        "1",
    ): "blur works on pixels, but start='fourier' optimizes a spectrum",
    ("tour", "phto.png"): "phto.png: no such file; did you mean photo.png?",
    ("tour", "photo.png", "--label", "ostrich"): "no label named 'ostrich'",
    ("tour", "photo.png", "--model", "resnet5O"): "did you mean resnet50?",
    ("again", "nosuch.json"): "nosuch.json can't be read as a recipe",
    ("again", "text.json"): "text.json can't be read as a recipe",
    ("again", "photo.png"): "photo.png can't be read as a recipe",
    ("again", "list.json"): "list.json is not a recipe",
    ("again", "other.json"): "other.json is not a recipe",
    ("again", "method.json"): "no method named 'salience'; did you mean saliency?",
    ("layers", "resnet5O"): "did you mean resnet50?",
    ("layers", "resnet18", "--weights", "nosuch.pt"): "no weights file nosuch.pt",
    ("models", "nosuch"): "no network's name contains 'nosuch'",
}


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_refuses_in_one_line_and_writes_nothing(
    words: tuple[str, ...], run: Run, place: Path
) -> None:
    before = contents(place)
    ran = run(*words, *(() if words[0] in ("layers", "models") else ("--out", "result")))
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("sightline: ")
    assert ran.err.endswith("\n")
    assert ran.err.count("\n") == 1, ran.err
    assert REFUSED[words] in ran.err
    assert contents(place) == before
    assert not Path("result").exists()


@pytest.mark.parametrize(
    "out", ["photo.png", "photo.png/sub", "x" * 300], ids=["file", "below-file", "long"]
)
@pytest.mark.parametrize(
    "words",
    [("filters", "sightnet"), ("tour", "photo.png"), ("again", "text.json")],
    ids=lambda words: words[0],
)
def test_refuses_a_place_that_cannot_be_written(
    words: tuple[str, ...], out: str, run: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(place)
    if words[0] == "again":
        assert run("filters", "sightnet", "--k", "2", "--out", "first").code == 0
        words, before = ("again", "first/recipe.json"), contents(place)
    for module in (zoo, recipe, execution):
        monkeypatch.setattr(
            module, "load", lambda *_, **__: pytest.fail("loaded before the folder was checked")
        )
    ran = run(*words, "--out", out)
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert "can't write" in ran.err
    assert contents(place) == before


# ── results ──


@pytest.mark.parametrize(
    "words",
    [
        ("predictions", *SMALL, "--k", "3"),
        ("filters", "sightnet", "--k", "4"),
        ("occlusion", *SMALL, "--window", "32", "--stride", "32"),
        ("synthesis", "3", "--steps", "2", "--size", "32", "--quiet"),
    ],
    ids=lambda words: words[0],
)
def test_json_tells_values_and_files(words: tuple[str, ...], run: Run) -> None:
    ran = run(*words, "--json")
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    folder = Path("out") / words[0]
    assert {Path(name) for name in told["files"]} == set(folder.iterdir())
    assert told["values"] == json.loads((folder / "values.json").read_text(encoding="utf-8"))
    assert {path.suffix for path in folder.iterdir()} - {".html"} == {
        ".png",
        ".json",
        ".safetensors",
    }


def test_prints_captions_and_pictures(run: Run) -> None:
    ran = run("saliency", *SMALL, "--out", "there")
    caption = json.loads(Path("there/recipe.json").read_text(encoding="utf-8"))["captions"][
        "saliency"
    ]
    assert ran == Ran(0, f"{caption}\n{Path('there/saliency.png')}\n", ran.err)
    assert ran.err.strip() == ""


def test_prints_the_page_to_browse(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    execution.save_and_print_result(
        sl.Result({}, {}, {"map": "A map."}, pages={"map": "<p>"}), tmp_path, as_json=False
    )
    assert capsys.readouterr().out == f"A map.\n{tmp_path / 'map.html'}\n"


def test_a_label_goes_by_number_name_or_part(run: Run) -> None:
    told = {
        word: json.loads(run("saliency", *SMALL, "--label", word, "--json").out)["values"]["label"]
        for word in ("4", "church", "CHUR")
    }
    assert told == {"4": [4], "church": [4], "CHUR": [4]}


def test_several_labels_become_an_axis(run: Run) -> None:
    told = {
        words: json.loads(
            run(
                "occlusion", *SMALL, "--window", "32", "--stride", "32", "--label", *words, "--json"
            ).out
        )
        for words in (("4",), ("church", "4"))
    }
    one, two = (found["values"] for found in told.values())
    assert (one["label"], two["label"]) == ([4], [[4, 4]])
    assert two["score"] == [one["score"] * 2]
    assert run("occlusion", *SMALL, "--label", "church", "nosuch").code == 1


def test_samples_stand_for_files_unless_there_is_one(run: Run) -> None:
    assert run("saliency", "chelsea", "--size", "32").code == 0
    shutil.copy("note.jpg", "chelsea")
    assert "chelsea: not an image" in run("saliency", "chelsea", "--size", "32").err


def test_quiet_is_quiet(run: Run) -> None:
    ran = run("synthesis", "3", "--steps", "2", "--size", "32", "--quiet")
    assert (ran.code, ran.err) == (0, "")


def test_layers(run: Run) -> None:
    model = sl.load()
    ran = run("layers")
    listed, marks = ran.out.split("\n\n")
    assert [line.split()[0] for line in listed.splitlines()] == list(model.layers)
    assert all(f"{mark} = {name}" in marks for mark, name in model.landmarks.items())
    told = json.loads(run("layers", "--json").out)
    assert [layer["name"] for layer in told["layers"]] == list(model.layers)
    assert told["landmarks"] == dict(model.landmarks)
    assert all(tuple(layer["shape"]) == model.shape(layer["name"]) for layer in told["layers"])


def test_models(run: Run) -> None:
    found = [line.split() for line in run("models", "resnet1").out.splitlines()]
    assert ["resnet18", "torchvision"] in found
    assert all("resnet1" in name for name, _ in found)
    assert "sightnet" in json.loads(run("models", "--json").out)["sightline"]


def test_samples(run: Run) -> None:
    assert run("samples").out.split() == images.samples()
    assert json.loads(run("samples", "--json").out) == images.samples()


# ── once more ──


@pytest.mark.parametrize(
    "words",
    [
        ("saliency", *SMALL),
        ("filters", "sightnet", "--k", "4"),
        ("activations", *SMALL, "--layers", "conv1", "last_conv", "--k", "3"),
        ("adversarial", *SMALL, "--steps", "2"),
        (
            "synthesis",
            "logit('church') - 0.1 * tv()",
            "--steps",
            "2",
            "--size",
            "32",
            "--seed",
            "3",
        ),
    ],
    ids=lambda words: words[0],
)
def test_again_makes_the_same_files(words: tuple[str, ...], run: Run) -> None:
    assert run(*words, "--out", "first").code == 0
    ran = run("again", "first/recipe.json", "--out", "second", "--json")
    assert ran.code == 0, ran.err
    assert contents(Path("first")) == contents(Path("second"))
    assert {Path(name) for name in json.loads(ran.out)["files"]} == set(Path("second").iterdir())


def test_again_refuses_another_image(run: Run) -> None:
    assert run("saliency", *SMALL, "--out", "first").code == 0
    images.write(smooth(side=80, seed=1), "photo.png")
    ran = run("again", "first/recipe.json", "--out", "second")
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "photo.png is not the image that the recipe was made with" in ran.err
    Path("photo.png").unlink()
    assert "photo.png: no such file" in run("again", "first/recipe.json", "--out", "second").err
    assert not Path("second").exists()


@pytest.mark.parametrize("option", [("--window", "8.5"), ("--window", "eight")])
def test_whole_numbers_are_not_rounded(run: Run, option: tuple[str, str]) -> None:
    ran = run("occlusion", "rocket", "--size", "32", *option)
    assert ran.code == 2
    assert "whole number" in ran.err + ran.out


def test_a_label_that_looks_like_a_number(run: Run) -> None:
    ran = run("saliency", "rocket", "--size", "32", "--label", "8.5")
    assert (ran.code, "no label named '8.5'" in ran.err) == (1, True)


@pytest.mark.parametrize(
    "model",
    [
        {"model": "subprocess:check_output", "options": {"args": ["touch", "made"]}},
        {"model": "os:getcwd"},
        {"model": 5},
        {},
    ],
)
def test_a_recipe_runs_no_code(run: Run, model: dict[str, object]) -> None:
    image = {"path": "rocket", "size": None, "sha256": "x"}
    Path("evil.json").write_text(
        json.dumps({"method": "predictions", "knobs": {}, "model": model, "image": image})
    )
    ran = run("again", "evil.json")
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert not Path("made").exists()


def test_again_refuses_other_weights(run: Run) -> None:
    weights = Path("own.safetensors")
    shutil.copy(ASSETS_FOLDER / "sightnet_plain.safetensors", weights)
    weights.chmod(0o600)
    assert (
        run("filters", "sightnet", "--k", "2", "--weights", str(weights), "--out", "first").code
        == 0
    )
    assert run("again", "first/recipe.json", "--out", "second").code == 0
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    ran = run("again", "first/recipe.json", "--out", "third")
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "own.safetensors are no longer those that the recipe was made with" in ran.err
    weights.unlink()
    ran = run("again", "first/recipe.json", "--out", "third")
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "own.safetensors" in ran.err
    assert not Path("third").exists()


# ── Ctrl-C ──


@pytest.fixture
def ctrl_c() -> Callable[[], None]:
    """Presses Ctrl-C."""
    return lambda: signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("name", ["synthesis", "adversarial", "deepdream"])
def test_ctrl_c_keeps_the_picture(
    name: str, run: Run, ctrl_c: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, step, seen = (
        signal.getsignal(signal.SIGINT),
        terminal.StepProgressBar.on_step,
        list[int](),
    )

    def interrupted(self: terminal.StepProgressBar, event: sl.Step) -> bool:
        stop = step(self, event)
        seen.append(event.index)
        if event.index == 2:
            ctrl_c()
        return stop

    subject = ("0", "--size", "32") if name == "synthesis" else ("photo.png", "--size", "64")
    with monkeypatch.context() as patch:
        patch.setattr(terminal.StepProgressBar, "on_step", interrupted)
        ran = run(
            name,
            *subject,
            *(("--octaves", "2") if name == "deepdream" else ("--steps", "9")),
            "--out",
            "result",
        )
    assert ran.code == 130, ran.err
    assert seen[-1] in (2, 3)
    assert images.read(f"result/{name}.png").isfinite().all()
    told = json.loads(Path("result/recipe.json").read_text(encoding="utf-8"))
    assert told["stopped_after"] == seen[-1]
    assert signal.getsignal(signal.SIGINT) is before
    assert run("again", "result/recipe.json", "--out", "second").code == 0
    assert contents(Path("second")) == contents(Path("result"))


def test_a_second_ctrl_c_insists(
    run: Run, ctrl_c: Callable[[], None], monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    before, step = contents(place), terminal.StepProgressBar.on_step

    def interrupted(self: terminal.StepProgressBar, event: sl.Step) -> bool:
        step(self, event)
        ctrl_c()
        ctrl_c()
        return False

    monkeypatch.setattr(terminal.StepProgressBar, "on_step", interrupted)
    ran = run("synthesis", "0", "--size", "32", "--steps", "9", "--out", "result")
    assert (ran.code, ran.out, ran.err.strip().splitlines()[-1]) == (
        130,
        "",
        "sightline: interrupted",
    )
    assert contents(place) == before


@pytest.mark.parametrize(
    "words",
    [("saliency", *SMALL), ("occlusion", *SMALL), ("synthesis", "0", "--size", "32")],
    ids=lambda words: words[0],
)
def test_ctrl_c_before_there_is_anything(
    words: tuple[str, ...],
    run: Run,
    ctrl_c: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    place: Path,
) -> None:
    before, pass_ = contents(place), sl.Model.call_network

    def interrupted(self: sl.Model, *args: Any) -> Any:
        ctrl_c()
        return pass_(self, *args)

    monkeypatch.setattr(sl.Model, "call_network", interrupted)
    ran = run(*words, "--out", "result")
    assert (ran.code, ran.out, ran.err.strip().splitlines()[-1]) == (
        130,
        "",
        "sightline: interrupted",
    )
    assert contents(place) == before
    assert not Path("result").exists()


def test_ctrl_c_while_writing_leaves_nothing(
    run: Run, ctrl_c: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    write, count = Path.write_bytes, iter(range(9))

    def interrupted(self: Path, content: bytes) -> int:
        if next(count) == 1:
            write(self, content[:100])
            ctrl_c()
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    ran = run("activations", *SMALL, "--layers", "conv1", "conv2_1", "--k", "2", "--out", "result")
    assert (ran.code, ran.out) == (130, "")
    assert not Path("result").exists()


# ── whatever happens ──


def test_bugs_keep_their_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sl.Model, "run", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("saliency", *SMALL)


def test_no_warnings_on_a_common_path(run: Run) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run("filters", "sightnet", "--k", "2").code == 0


def test_parsing_loads_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (zoo, execution):
        monkeypatch.setattr(module, "load", lambda *_, **__: pytest.fail("loaded"))
    command, bound, _ = make_app().parse_args(
        ["adversarial", "cat.jpg", "--model", "resnet50", "--eps", "0.01", "--norm", "l2"],
        exit_on_error=False,
    )
    assert (command.__name__, bound.arguments["eps"], bound.arguments["norm"]) == (
        "adversarial",
        0.01,
        "l2",
    )
    with pytest.raises(CycloptsError):
        make_app().parse_args(
            ["adversarial", "--norm", "l3"], exit_on_error=False, print_error=False
        )


def test_torch_draws_the_same_after_a_command(run: Run) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    assert run("adversarial", *SMALL, "--steps", "1").code == 0
    assert torch.equal(torch.rand(3), expected)
