"""Networks by name, and real networks by their accuracy on real photographs."""

import hashlib
import inspect
import json
import urllib.error
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import models

from sightline.errors import SightlineError
from sightline.images.io.pictures import read
from sightline.models.model import Model
from sightline.models.zoo.builders import find_embedded_weights, find_network_builder
from sightline.models.zoo.libraries.torchvision_classifiers import build_torchvision_network
from sightline.models.zoo.load import (
    choose_default_device,
    load,
    load_other_network,
    resolve_device,
)
from sightline.models.zoo.names import list_network_names
from sightline.models.zoo.sightnet import SIGHTNET_LABELS, make_sightnet

load_on_cpu = partial(load, device="cpu")


def flatten_weights(model: Model) -> Tensor:
    """All weights in one vector."""
    weights = model.network.state_dict().values()
    return torch.cat([weight.detach().flatten().float() for weight in weights])


@pytest.fixture(scope="module")
def squeezenet_state() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return models.squeezenet1_0().state_dict()


# ── names ──


def test_names_of_every_library() -> None:
    names = list_network_names()
    assert list(names) == ["sightline", "torchvision", "timm"]
    assert {"vgg16", "resnet50", "googlenet"} <= set(names["torchvision"])
    assert {"fcn_resnet101", "retinanet_resnet50_fpn_v2"} <= set(names["torchvision"])
    assert not {"quantized_resnet50", "s3d", "raft_large"} & set(names["torchvision"])
    assert {"mobilenetv2_100", "resnet10t"} <= set(names["timm"])


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("squezenet1_0", "squeezenet1_0"),
        ("VGG16", "vgg16"),
        ("resnet-50", "resnet50"),
        ("sightnett", "sightnet"),
        ("mobilnetv2_100", "mobilenetv2_100"),
    ],
)
def test_unknown_names_are_reported_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(
        SightlineError, match=f"^no network named '{name}'; did you mean {nearest}\\?$"
    ):
        load(name)


def test_the_name_of_both_libraries_is_torchvisions() -> None:
    assert find_network_builder("resnet18").__name__ == "build_torchvision_network"
    assert find_network_builder("resnet10t.c3_in1k").__name__ == "build_timm_network"


@pytest.mark.parametrize(
    ("name", "size", "resize"),
    [
        ("alexnet", 224, 256),
        ("resnet50", 224, 232),
        ("inception_v3", 299, 342),
        ("convnext_tiny", 224, 236),
        ("efficientnet_b0", 224, 256),
    ],
)
def test_preprocessing_is_that_of_the_published_weights(name: str, size: int, resize: int) -> None:
    with torch.device("meta"):
        settings = build_torchvision_network(name, "random", {}).settings
    labels = settings.get("labels", ())
    assert (len(labels), labels[0], labels[-1]) == (1000, "tench", "toilet tissue")
    published = models.get_model_weights(name).DEFAULT.transforms()
    assert (settings.get("size"), settings.get("resize")) == (size, resize)
    assert (size, resize) == (published.crop_size[0], published.resize_size[0])


def test_preprocessing_of_a_timm_network() -> None:
    model = load_on_cpu("mobilenetv2_100", weights="random")
    assert (model.size, model.resize, len(model.labels)) == (224, 256, 1000)
    assert model.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    changed = load_on_cpu(
        "mobilenetv2_100", weights="random", mean=[0.5] * 3, std=[0.25] * 3, size=96
    )
    assert changed.mean.flatten().tolist() == [0.5] * 3
    assert changed.std.flatten().tolist() == [0.25] * 3
    assert changed.size == 96


def test_options_reach_the_constructor() -> None:
    same = load_on_cpu("mobilenetv2_100", weights="random", pad_type="same")
    assert "Conv2dSame" in {layer.kind for layer in same.layers.values()}
    assert same.recipe["options"] == {"pad_type": "same"}
    few = load_on_cpu("resnet18", weights="random", num_classes=7)
    assert few.labels == tuple(f"class {i}" for i in range(7))
    assert len(load_on_cpu("mobilenetv2_100", weights="random", num_classes=3).labels) == 3
    with pytest.raises(SightlineError, match="constructor options go with a name"):
        load(nn.Sequential(), pad_type="same")


def test_random_weights_are_the_same_every_time_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = load_on_cpu("squeezenet1_0", weights="random")
    assert torch.equal(torch.rand(1), expected)
    second = load_on_cpu("squeezenet1_0", weights="random")
    assert torch.equal(flatten_weights(first), flatten_weights(second))
    torch.manual_seed(0)
    assert torch.equal(flatten_weights(first), flatten_weights(Model(models.squeezenet1_0())))
    assert first.recipe == {"model": "squeezenet1_0", "weights": "random"}
    torch.manual_seed(5)
    load_on_cpu("sightnet")
    assert torch.equal(torch.rand(1), expected)


def test_a_module_of_the_callers_own() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = load(network, labels=list("abcd"), size=32)
    assert (model.name, model.labels, model.size) == ("Sequential", tuple("abcd"), 32)
    for arguments in ({"weights": "random"}, {"weights": "file.safetensors"}):
        with pytest.raises(SightlineError, match="module"):
            load(network, **arguments)


def test_the_embedded_network() -> None:
    model = load_on_cpu()
    assert (model.name, model.size, model.labels) == ("sightnet", 160, SIGHTNET_LABELS)
    assert list(model.layers) == [path for path, module in make_sightnet().named_modules() if path]
    assert model.layer("last_conv") in model.layers
    assert model.layer("penultimate") == "fc:in"


def test_the_embedded_network_that_was_trained_plainly() -> None:
    model = load_on_cpu("sightnet_plain")
    assert (model.name, model.size, model.labels) == ("sightnet_plain", 160, SIGHTNET_LABELS)
    weights = load_file(find_embedded_weights("sightnet_plain"))
    for name, value in model.network.state_dict().items():
        assert torch.equal(value, weights[name].float())


def test_a_recipe_says_how_to_load_the_same_again() -> None:
    weights = find_embedded_weights("sightnet")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert load_on_cpu().recipe == {"model": "sightnet", "sha256": digest}
    model = load_on_cpu(weights=weights, size=96, classes=10)
    assert model.recipe == {
        "model": "sightnet",
        "options": {"classes": 10, "size": 96},
        "weights": str(weights.resolve()),
        "sha256": digest,
    }
    assert load(nn.Flatten()).recipe == {"model": "Flatten", "built_in_code": True}


def test_another_network_may_name_its_weights() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    named = load_other_network("sightnet", torch.device("cpu"))
    weights = find_embedded_weights("sightnet")
    from_file = load_other_network(f"sightnet={weights}", torch.device("cpu"))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(flatten_weights(named), flatten_weights(from_file))
    assert from_file.recipe["weights"] == str(weights.resolve())
    with pytest.raises(SightlineError, match="the other network is '=x'; it must be a network's"):
        load_other_network("=x", torch.device("cpu"))


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(SightlineError, match=r"^the device 'warp' can't be used here \("):
        resolve_device("warp")


# ── downloads, none of which happens ──


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError("no route to host"),
        ConnectionResetError("reset by peer"),
        RuntimeError('invalid hash value (expected "b66b")'),
    ],
)
def test_weights_that_can_not_be_downloaded(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(inspect.getmodule(models.get_model), "load_state_dict_from_url", fail)
    with pytest.raises(
        SightlineError,
        match=(
            r"^the pretrained weights of squeezenet1_0 can't be downloaded \(.*\); "
            r"give a file with weights=FILE$"
        ),
    ):
        load("squeezenet1_0")


def test_timm_weights_that_can_not_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("An error happened while trying to locate the file on the Hub\nand more")

    monkeypatch.setattr("timm.models._builder.load_pretrained", fail)
    with pytest.raises(
        SightlineError,
        match=(
            r"^the pretrained weights of resnet10t can't be downloaded "
            r"\(An error happened .* the Hub\); give a file"
        ),
    ):
        load("resnet10t")


def test_downloads_verify_their_sha256(
    monkeypatch: pytest.MonkeyPatch, squeezenet_state: dict[str, Tensor]
) -> None:
    request: dict[str, Any] = {}

    def deliver(url: str, *_: Any, **options: Any) -> dict[str, Tensor]:
        request.update(options, url=url)
        return squeezenet_state

    monkeypatch.setattr(inspect.getmodule(models.get_model), "load_state_dict_from_url", deliver)
    model = load_on_cpu("squeezenet1_0")
    assert request["check_hash"] is True
    assert model.recipe == {"model": "squeezenet1_0"}
    assert torch.equal(
        model.network.state_dict()["classifier.1.bias"], squeezenet_state["classifier.1.bias"]
    )


def test_the_device_is_an_accelerator_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_default_device() == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_default_device() == "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_default_device() == "cpu"


# ── real weights ──

REAL = {
    "squeezenet1_0": ("squeezenet1_0.safetensors", {}, 0.7),
    "mobilenetv2_100": (
        "mobilenetv2_100_same.safetensors",
        {"pad_type": "same", "mean": [0.5] * 3, "std": [0.5] * 3},
        0.9,
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_real_networks_know_real_photographs(data: Path, name: str) -> None:
    file, options, min_accuracy = REAL[name]
    model = load_on_cpu(name, weights=data / "nets" / file, **options)
    entries = json.loads((data / "imagenet_labels.json").read_text(encoding="utf-8"))
    index = {entry["wnid"]: entry["index"] for entry in entries}
    photographs = sorted((data / "imagenet_samples").glob("*.jpg"))[::20]
    image = torch.cat([model.fit(read(path)) for path in photographs])
    truth = torch.tensor([index[path.name.split("_")[0]] for path in photographs])
    with torch.no_grad():
        top_5 = model.logits(image).topk(5).indices
    assert len(photographs) == 40
    assert (top_5 == truth[:, None]).any(1).float().mean() >= min_accuracy
    for path, label in zip(photographs[:3], truth.tolist(), strict=False):
        assert model.index(path.stem.split("_", 1)[1].replace("_", " ")) == label


def test_real_weights_are_those_of_the_file(data: Path) -> None:
    path = data / "nets" / "squeezenet1_0.safetensors"
    model = load_on_cpu("squeezenet1_0", weights=path)
    state = load_file(path)
    assert all(
        torch.equal(value, state[key].float()) for key, value in model.network.state_dict().items()
    )
    assert model.recipe["weights"] == str(path.resolve())
