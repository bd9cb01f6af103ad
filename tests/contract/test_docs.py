"""Every code block of the README and the manual runs: on small pictures, few steps, random weights.

A block that is followed by one of kind `text` is refused with this text. Of commands that take
long (a report, a training, a scan on a cluster) it is only tried whether they are understood; other
tests run them.
"""

import functools
import re
import shlex
import tomllib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, small_network, smooth
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet, vgg

import sightline as sl
from sightline.app.cli.application import make_app
from sightline.app.cli.main import main
from sightline.methods import load_methods
from sightline.models.weights.layer_names import find_layer_aliases
from sightline.models.zoo import load
from sightline.models.zoo.builders import find_network_builder
from sightline.models.zoo.libraries.settings import BuiltNetwork, NetworkBuilder
from sightline.registry.method import METHODS

OWN_NETWORK = ROOT / "docs" / "own_network.md"  # test_own_network.py runs it
# Pages whose many commands take seconds; the others try commands and calls as well.
SLOW_PAGES = [
    ROOT / "docs" / f"{name}.md"
    for name in ("adversarial", "deepdream", "ecosystem", "inversion", "synthesis", "trust")
]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "questions").glob("*.md")),
]
BLOCK = re.compile(r"^(```+)(\w+)\n(.*?)^\1$", re.MULTILINE | re.DOTALL)

SMALL_SIDE = 64
# The most that a method may take of what its time grows with.
LIMITS = {
    "steps": 2,
    "samples": 4,
    "masks": 4,
    "cells": 3,
    "octaves": 1,
    "curve": 2,
    "restarts": 1,
    "max_units": 2,
    "channels": 3,
    "stages": 2,
}
# Of these commands only whether they are understood.
LONG_COMMANDS = (
    ("tour",),
    ("stylizer", "train"),
    ("explore",),
    ("export",),
    ("compare",),
    ("mistakes",),
    ("ablate",),
)
PICTURES = ("cat", "dog", "any", "photo", "night", "wave")
FOLDERS = ("photos", "paintings")
PHOTO_COUNT = 20


@dataclass(frozen=True)
class Block:
    """A block of code: where it stands, its language, and the error it must end with."""

    line: int
    language: str
    code: str
    error: str = ""


def read_blocks(page: Path) -> list[Block]:
    """The blocks of a page in their order."""
    text = page.read_text(encoding="utf-8")
    blocks: list[Block] = []
    for match in BLOCK.finditer(text):
        language, code = match[2], match[3]
        if language == "text":
            blocks[-1] = replace(blocks[-1], error=code.strip())
        else:
            blocks.append(Block(text[: match.start(3)].count("\n"), language, code))
    return blocks


# ── small networks, pictures and numbers of steps ──


def find_small_builder(name: str) -> NetworkBuilder:
    """The builder of a network, which takes random weights where others would be downloaded."""
    builder = find_network_builder(name)
    if name.startswith("hf:"):
        return build_small_transformer
    if name.startswith("vgg"):
        return build_thin_vgg
    if name == "resnet50":
        return build_thin_resnet

    def build(name: str, weights: str | None, options: dict[str, Any]) -> BuiltNetwork:
        if name in ("sightnet", "sightnet_plain") or ":" in name:
            return builder(name, weights, options)
        built = builder(name, weights or "random", options)
        built.settings["size"] = SMALL_SIDE
        return built

    return build


class VGG(nn.Module):
    """VGG-16 with a sixteenth of the channels."""

    def __init__(self) -> None:
        super().__init__()
        widths = [width if width == "M" else width // 16 for width in vgg.cfgs["D"]]
        self.features = vgg.make_layers(widths)
        self.avgpool = nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Sequential(
            nn.Linear(32 * 4, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 1000)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.avgpool(self.features(images)).flatten(1))


def build_thin_vgg(_name: str, _weights: str | None, _options: dict[str, Any]) -> BuiltNetwork:
    """A VGG that any test has time for, with ImageNet's classes and the papers' names of layers."""
    torch.manual_seed(0)
    network = VGG().eval()
    labels = vgg.VGG16_Weights.DEFAULT.meta["categories"]
    settings = {
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "size": SMALL_SIDE,
        "labels": labels,
        "aliases": find_layer_aliases("vgg16", network),
    }
    return BuiltNetwork(network, settings)


class ThinBottleneck(resnet.Bottleneck):
    """A block whose last convolution has as many units as the first of its stage."""

    expansion = 1


def build_thin_resnet(_name: str, _weights: str | None, _options: dict[str, Any]) -> BuiltNetwork:
    """ResNet-50's layers with few units: a scan, and facts of all units, would take seconds."""
    torch.manual_seed(0)
    network = resnet.ResNet(ThinBottleneck, [3, 4, 6, 3], width_per_group=8).eval()
    settings = {
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "size": SMALL_SIDE,
        "labels": resnet.ResNet50_Weights.DEFAULT.meta["categories"],
        "aliases": find_layer_aliases("resnet50", network),
    }
    return BuiltNetwork(network, settings)


def build_small_transformer(
    _name: str, _weights: str | None, _options: dict[str, Any]
) -> BuiltNetwork:
    """A transformer of Hugging Face that is small enough for any test."""
    from transformers import ViTConfig, ViTForImageClassification

    configuration = ViTConfig(
        image_size=SMALL_SIDE,
        patch_size=16,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=5,
        attn_implementation="eager",
    )
    network = ViTForImageClassification(configuration).eval()
    return BuiltNetwork(network, {"mean": (0.5,) * 3, "std": (0.5,) * 3, "size": SMALL_SIDE})


def shorten_method(function: Callable[..., Any], parameters: Any) -> Callable[..., Any]:
    """The method with as few steps as show that the call is right."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for name, limit in LIMITS.items():
            if name not in parameters:
                continue
            value = kwargs.get(name, parameters[name].default)
            if isinstance(value, int) and value > limit:
                kwargs[name] = limit
        return function(*args, **kwargs)

    return call


@pytest.fixture
def small_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks, small pictures, few steps."""
    monkeypatch.setattr(load, "find_network_builder", find_small_builder)
    fit = sl.Model.fit

    def fit_small(model: sl.Model, image: torch.Tensor, size: Any = None) -> torch.Tensor:
        return fit(model, image, SMALL_SIDE if size is None or size > SMALL_SIDE else size)

    monkeypatch.setattr(sl.Model, "fit", fit_small)
    # Its queries without a gradient take minutes where it does not succeed.
    with suppress(ImportError):
        import torchattacks

        monkeypatch.setattr(torchattacks, "AutoAttack", torchattacks.APGD)
    for method in load_methods().values():
        short = shorten_method(method.function, method.parameters)
        monkeypatch.setitem(METHODS, method.name, replace(method, function=short))
        monkeypatch.setattr(sl, method.name, short, raising=False)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all files that the pages name."""
    monkeypatch.chdir(tmp_path)
    pictures = smooth(PHOTO_COUNT, side=48)
    for number, name in enumerate(PICTURES):
        sl.write(pictures[number : number + 1], tmp_path / f"{name}.jpg")
    sl.write(pictures[:1], tmp_path / "dog.png")
    (tmp_path / "labels.txt").write_text("\n".join(f"class {n}" for n in range(1000)), "utf-8")
    for folder in FOLDERS:
        (tmp_path / folder).mkdir()
        for number in range(PHOTO_COUNT):
            sl.write(pictures[number : number + 1], tmp_path / folder / f"{number:02}.jpg")
    marked = tmp_path / "marked"
    marked.mkdir()
    sl.write(pictures[:1], marked / "0.jpg")
    (marked / "boxes.csv").write_text("file,label,x0,y0,x1,y1\n0.jpg,,8,6,30,24\n", "utf-8")
    (tmp_path / "broken.jpg").write_bytes(b"This is no photograph.\n")
    package = tmp_path / "mypackage"
    package.mkdir()
    package.joinpath("nets.py").write_text(
        "from helpers import small_network as build\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    save_file({"strange.weight": torch.zeros(3, 5)}, tmp_path / "other.safetensors")
    return tmp_path


def make_weights(folder: Path) -> None:
    """Trained weights of SqueezeNet, as the pages call them."""
    from torchvision.models import squeezenet1_0

    torch.manual_seed(0)
    save_file(squeezenet1_0().state_dict(), folder / "mine.safetensors")


# ── running blocks ──


def run_python(block: Block, page: Path, names: dict[str, Any]) -> None:
    """Runs a block; an error names the line of the page."""
    source = "\n" * block.line + block.code
    code = compile(source, str(page), "exec")
    if not block.error:
        exec(code, names)
        return
    with pytest.raises(sl.SightlineError) as caught:
        exec(code, names)
    assert str(caught.value) == block.error


def run_shell(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs the lines of a block that are commands of Sightline, and checks the others."""
    for line in block.code.splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words = words[1:]
        if not words:
            continue
        if words[0] != "sightline":
            check_other_command(words)
        elif is_long(words[1:]):
            make_app().parse_args(words[1:], exit_on_error=False, print_error=False)
        else:
            capsys.readouterr()
            status = main(shrink_numbers(words[1:]))
            message = capsys.readouterr().err.strip()
            if block.error:
                assert (status > 0, message) == (True, block.error)
            else:
                assert status == 0, f"{line}: {message}"


def is_long(words: list[str]) -> bool:
    commands = [words[: len(command)] == list(command) for command in LONG_COMMANDS]
    return any(commands) or "ray" in words


def shrink_numbers(words: list[str]) -> list[str]:
    """The command with a small --size, and few layers or images."""
    words = [*words]
    # A scan keeps all images of each unit, since other commands on the page ask for several.
    image_count = PHOTO_COUNT if words[0] == "scan" else 4
    for option, number in (("--size", SMALL_SIDE), ("--k", image_count)):
        if option in words:
            words[words.index(option) + 1] = str(number)
    return words


def check_other_command(words: list[str]) -> None:
    """Targets of make are in the Makefile, extras of pip in pyproject.toml, scripts are there."""
    match words:
        case ["make", target]:
            makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
            assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
        case ["pip", "install", *packages]:
            project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
            for extra in re.findall(r"sightline\[(\w+)\]", " ".join(packages)):
                assert extra in project["project"]["optional-dependencies"]
        case ["python", script, *_]:
            assert (ROOT / script).is_file(), script
        case ["ray", "start", *_]:
            pass
        case _:
            pytest.fail(f"no rule for the command {words}")


def make_names() -> dict[str, Any]:
    """The names that pages use without making them."""
    return {
        "sl": sl,
        "torch": torch,
        "my_module": small_network(),
        "my_mean": (0.5, 0.5, 0.5),
        "my_std": (0.25, 0.25, 0.25),
        "my_labels": ["ant", "bee", "cat", "dog", "elk"],
        "batch": smooth(2, side=SMALL_SIDE),
    }


def list_pages() -> list[Any]:
    """The pages as parameters of a test."""
    parameters: list[Any] = []
    for page in PAGES:
        marks = [pytest.mark.slow] if page in SLOW_PAGES else []
        if page != OWN_NETWORK:
            parameters.append(pytest.param(page, id=str(page.relative_to(ROOT)), marks=marks))
    return parameters


@pytest.mark.parametrize("page", list_pages())
@pytest.mark.usefixtures("small_work")
# The page on errors scripts a module, to show the refusal.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")
def test_every_block_runs(page: Path, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = read_blocks(page)
    text = page.read_text(encoding="utf-8")
    if "mine.safetensors" in text:
        make_weights(workplace)
    makes_store = re.search(r"sightline scan photos/.*--store photos\.scan", text)
    if "--store photos.scan" in text and not makes_store:
        sl.scan(sl.load(), workplace / "photos", store=workplace / "photos.scan")
    names = make_names()
    for block in blocks:
        match block.language:
            case "python":
                run_python(block, page, names)
            case "sh":
                run_shell(block, capsys)
            case "toml":
                tomllib.loads(block.code)
            case language:
                pytest.fail(f"line {block.line}: no rule for {language}")
