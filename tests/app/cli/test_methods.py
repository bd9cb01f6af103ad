"""The grammar of the methods' commands: what a command is about stands first."""

import shlex
from pathlib import Path
from typing import Any

import pytest
from helpers import smooth

import sightline as sl
from sightline.app.cli import execution
from sightline.app.cli.application import make_app
from sightline.app.cli.declarations import read_method_declarations
from sightline.app.cli.main import main
from sightline.images.io import pictures as images
from sightline.images.sample_names import DEFAULT_SAMPLE
from sightline.methods import load_methods


def parse(line: str) -> dict[str, Any]:
    """The arguments that a command line comes to, with defaults."""
    _, bound, _ = make_app().parse_args(shlex.split(line), exit_on_error=False, print_error=False)
    bound.apply_defaults()
    return bound.arguments


@pytest.mark.parametrize("name", read_method_declarations())
def test_a_command_needs_no_argument(name: str) -> None:
    arguments = parse(name)
    declaration = read_method_declarations()[name]
    reads_store = "store" in declaration.parameters
    assert arguments["model"] == (None if reads_store else "sightnet")
    if declaration.subject == "image":
        assert arguments["image"] == (None if reads_store else DEFAULT_SAMPLE)
        method = load_methods()[name]
        assert execution.choose_image_name(method, arguments["image"], arguments) == DEFAULT_SAMPLE


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "occlusion cat.jpg --model vgg16 --label tabby",
            {"image": "cat.jpg", "model": "vgg16", "label": ("tabby",)},
        ),
        (
            "synthesis 'golf ball' --model resnet50",
            {"objective": "golf ball", "model": "resnet50"},
        ),
        (
            "style cat.jpg night.jpg great_wave --model vgg19",
            {"image": "cat.jpg", "paintings": ("night.jpg", "great_wave"), "model": "vgg19"},
        ),
        ("filters vgg16", {"model": "vgg16"}),
        ("filters --model vgg16", {"model": "vgg16"}),
        ("layers vgg16", {"model": "vgg16"}),
        ("layers --model vgg16", {"model": "vgg16"}),
        ("tour cat.jpg --model vgg16", {"image": "cat.jpg", "model": "vgg16"}),
        (
            "patches --store photos.scan --layer layer4 --unit 7",
            {"model": None, "store": "photos.scan", "layer": "layer4", "unit": 7},
        ),
        (
            "neighbors cat.jpg --store photos.scan",
            {"image": "cat.jpg", "store": "photos.scan", "model": None},
        ),
        (
            "adversarial dog.jpg --model resnet50 --target ostrich",
            {"image": "dog.jpg", "model": "resnet50", "target": "ostrich"},
        ),
        (
            "scan photos/ --model resnet50 --store photos.scan",
            {"folder": "photos/", "model": "resnet50", "store": Path("photos.scan")},
        ),
    ],
)
def test_the_subject_stands_first(line: str, expected: dict[str, Any]) -> None:
    arguments = parse(line)
    assert {name: arguments[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("line", "network", "corrected"),
    [
        ("occlusion vgg16 cat.jpg", "vgg16", "occlusion cat.jpg --model vgg16"),
        (
            "occlusion vgg16 cat.jpg --label tabby --window 32",
            "vgg16",
            "occlusion cat.jpg --label tabby --window 32 --model vgg16",
        ),
        ("saliency sightnet", "sightnet", "saliency --model sightnet"),
        (
            "synthesis resnet50.a1_in1k 'golf ball'",
            "resnet50.a1_in1k",
            "synthesis 'golf ball' --model resnet50.a1_in1k",
        ),
        (
            "inversion mobilenetv2_100 --store a.scan --id 3",
            "mobilenetv2_100",
            "inversion --store a.scan --id 3 --model mobilenetv2_100",
        ),
        (
            "pointing my.nets:build --folder marked",
            "my.nets:build",
            "pointing --folder marked --model my.nets:build",
        ),
    ],
)
def test_the_old_order_gets_the_corrected_line(
    line: str, network: str, corrected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(shlex.split(line)) == 2
    expected = f"sightline: {network} is a network's name: sightline {corrected}\n"
    assert capsys.readouterr() == ("", expected)


def test_a_corrected_line_is_understood() -> None:
    arguments = parse("occlusion cat.jpg --label tabby --window 32 --model vgg16")
    assert arguments["label"] == ("tabby",)
    assert (arguments["image"], arguments["model"]) == ("cat.jpg", "vgg16")


def test_a_file_named_like_a_network_is_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images.write(smooth(side=40)[..., :32], "picture.png")
    Path("picture.png").rename("vgg16")
    assert main(["predictions", "vgg16", "--size", "32", "--quiet"]) == 0


def test_paintings_by_position_are_the_styles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images.write(smooth(side=96)[..., :80, :], "photo.png")
    options = ["--steps", "1", "--size", "32", "--style-scale", "1.5", "--quiet"]
    assert main(["style", "photo.png", "gravel", "great_wave", *options, "--out", "first"]) == 0
    styles = ["--styles", "gravel", "great_wave"]
    assert main(["style", "photo.png", *styles, *options, "--out", "second"]) == 0
    for name in ("style.png", "recipe.json"):
        assert Path("first", name).read_bytes() == Path("second", name).read_bytes()


def test_paintings_given_twice_are_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["style", "rocket", "gravel", "--styles", "brick"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("sightline: give the paintings after the photograph or by --styles")
    assert said.err.count("\n") == 1


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stores that are opened. Stores and networks are stood for by their names."""
    paths: list[str] = []

    class Store:
        def model(self, device: str | None) -> str:
            return f"the network of {paths[-1]} on {device}"

    def open_store(path: str) -> Store:
        paths.append(path)
        return Store()

    monkeypatch.setattr(sl.Scan, "open", open_store)
    monkeypatch.setattr(execution, "load", lambda name, **_: name)
    return paths


SHARED = execution.SharedOptions(None, None, "cpu", Path("out"), as_json=False, quiet=False)


def test_a_store_stands_for_the_network_where_a_scan_is_taken(opened: list[str]) -> None:
    parameters = {"store": "a.scan", "folder": None}
    method = load_methods()["neighbors"]
    store = execution.load_network_or_store(method, None, parameters, SHARED)
    assert not isinstance(store, str)
    assert (opened, parameters) == (["a.scan"], {"folder": None})


@pytest.mark.parametrize("name", ["inversion", "synthesis"])
def test_elsewhere_the_network_of_the_store_is_used(name: str, opened: list[str]) -> None:
    parameters = {"store": "a.scan"}
    method = load_methods()[name]
    network = execution.load_network_or_store(method, None, parameters, SHARED)
    assert network == "the network of a.scan on cpu"
    assert (opened, parameters) == (["a.scan"], {"store": "a.scan"})


@pytest.mark.parametrize(
    ("network", "folder"), [("vgg16", None), ("vgg16", "photos"), (None, "photos")]
)
def test_with_a_network_or_folder_the_store_stays_a_parameter(
    network: str | None, folder: str | None, opened: list[str]
) -> None:
    parameters = {"store": "a.scan", "folder": folder}
    method = load_methods()["neighbors"]
    loaded = execution.load_network_or_store(method, network, parameters, SHARED)
    assert loaded == (network or "sightnet")
    assert (opened, parameters) == ([], {"store": "a.scan", "folder": folder})


@pytest.mark.parametrize(
    ("image", "parameters", "expected"),
    [
        ("cat.jpg", {"id": 3}, "cat.jpg"),
        (None, {"id": None, "unit": None}, DEFAULT_SAMPLE),
        (None, {"id": 0, "unit": None}, None),
        (None, {"id": None, "unit": 7}, None),
    ],
)
def test_the_image_of_a_command_over_a_store(
    image: str | None, parameters: dict[str, Any], expected: str | None
) -> None:
    methods = load_methods()
    assert execution.choose_image_name(methods["neighbors"], image, parameters) == expected
    # The unit of one is not a store's; the other always takes an image beside its store.
    for name in ("guided", "inversion"):
        chosen = execution.choose_image_name(methods[name], image, parameters)
        assert chosen == (image or DEFAULT_SAMPLE)


# ── targets ──


def test_every_method_with_a_target_has_the_short_options() -> None:
    for name, declaration in read_method_declarations().items():
        takes_target = any(item.is_target for item in declaration.parameters.values())
        has_options = {"pixel", "box", "like"} <= set(parse(name))
        assert has_options == (takes_target or declaration.subject == "objective"), name
    assert read_method_declarations()["adversarial"].parameters["score"].is_target
    assert not read_method_declarations()["adversarial"].parameters["target"].is_target


def test_short_options_take_words_up_to_the_next_option() -> None:
    arguments = parse("saliency cat.png --pixel 10 20 'tabby cat' --quiet")
    assert arguments["pixel"] == (10, 20, "tabby cat")
    arguments = parse("saliency cat.png --box 1 2 30.5 40 dog --like other.png")
    assert tuple(arguments["box"]) == ("1", "2", "30.5", "40", "dog")
    assert arguments["like"] == Path("other.png")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("saliency --target \"unit('conv2', 1)\" --pixel 1 2 cat", "an option writes"),
        ("synthesis goose --pixel 1 2 cat", "an option writes"),
        ("saliency --pixel 1 2 cat --box 1 2 3 4", "give one of --pixel, --box"),
        ("adversarial --score \"unit('conv2', 1)\" --like a.png", "an option writes"),
    ],
)
def test_two_targets_are_one_too_many(
    line: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([*shlex.split(line), "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("adversarial dog.jpg ostrich", {"image": "dog.jpg", "class_name": "ostrich"}),
        ("saliency dog.jpg 7", {"image": "dog.jpg", "class_name": 7}),
        ("adversarial dog.jpg --label ostrich", {"target": "ostrich"}),
        ("pointing --target ostrich", {"label": "ostrich"}),
        ("gradcam dog.jpg --layer a b", {"layer": ("a", "b")}),
        ("gradcam dog.jpg --layer a", {"layer": "a"}),
        ("activations dog.jpg --layer a b", {"layers": ("a", "b")}),
        ("texture gravel --layer a b", {"layers": ("a", "b")}),
        ("inversion dog.jpg --layer a b", {"layer": ("a", "b")}),
        ("saliency dog.jpg --mean 0.5 0.4 0.3 --std 1 1 2", {"mean": (0.5, 0.4, 0.3)}),
        ("saliency dog.jpg --mean 0.5,0.4,0.3 --std 1,1 2", {"std": (1.0, 1.0, 2.0)}),
        ("occlusion dog.jpg --quick", {"quick": True}),
        ("style dog.jpg --cropped", {"cropped": True}),
    ],
)
def test_classes_and_layers_are_spelled_the_same(line: str, expected: dict[str, Any]) -> None:
    arguments = parse(line)
    assert {name: arguments[name] for name in expected} == expected


def test_quick_is_offered_where_it_helps() -> None:
    for name, declaration in read_method_declarations().items():
        arguments = parse(name)
        assert ("quick" in arguments) == bool(declaration.quick)
