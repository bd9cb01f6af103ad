"""Names, weights files and what is refused of them; real networks by their accuracy on real photographs."""

import inspect
import json
import pickle
import tempfile
import urllib.error
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision import models

from sightline.errors import SightlineError
from sightline.images.io import read
from sightline.models.model import Model
from sightline.models.weights.checkpoint import fill_network_weights, read_weights
from sightline.models.zoo.load import (
    choose_default_device,
    count_classes,
    find_network_builder,
    list_network_names,
    load,
)
from sightline.models.zoo.sightnet import SIGHTNET_LABELS, make_sightnet

CPU = {"device": "cpu"}


def flat(model: Model) -> Tensor:
    """All weights in one vector."""
    return torch.cat(
        [value.detach().flatten().float() for value in model.network.state_dict().values()]
    )


# ── names ──


def test_names_of_every_library() -> None:
    known = list_network_names()
    assert list(known) == ["sightline", "torchvision", "timm"]
    assert {"vgg16", "resnet50", "googlenet"} <= set(known["torchvision"])
    assert not {"fcn_resnet50", "raft_large"} & set(known["torchvision"])
    assert {"mobilenetv2_100", "resnet10t"} <= set(known["timm"])


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
def test_unknown_names_are_told_the_nearest(name: str, nearest: str) -> None:
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
        model = load(name, weights="random", device="meta")
        assert (model.name, model.size, model.resize) == (name, size, resize)
        assert (len(model.labels), model.labels[0], model.labels[-1]) == (
            1000,
            "tench",
            "toilet tissue",
        )
    published = models.get_model_weights(name).DEFAULT.transforms()
    assert (model.size, model.resize) == (published.crop_size[0], published.resize_size[0])


def test_preprocessing_of_a_timm_network() -> None:
    model = load("mobilenetv2_100", weights="random", **CPU)
    assert (model.size, model.resize, len(model.labels)) == (224, 256, 1000)
    assert model.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    given = load(
        "mobilenetv2_100", weights="random", mean=[0.5] * 3, std=[0.25] * 3, size=96, **CPU
    )
    assert (given.mean.flatten().tolist(), given.std.flatten().tolist(), given.size) == (
        [0.5] * 3,
        [0.25] * 3,
        96,
    )


def test_options_reach_the_constructor() -> None:
    same = load("mobilenetv2_100", weights="random", pad_type="same", **CPU)
    assert "Conv2dSame" in {layer.kind for layer in same.layers.values()}
    assert same.recipe["options"] == {"pad_type": "same"}
    few = load("resnet18", weights="random", num_classes=7, **CPU)
    assert few.labels == tuple(f"class {i}" for i in range(7))
    assert len(load("mobilenetv2_100", weights="random", num_classes=3, **CPU).labels) == 3
    with pytest.raises(SightlineError, match="constructor options go with a name"):
        load(nn.Sequential(), pad_type="same")


def test_random_weights_are_the_same_every_time_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = load("squeezenet1_0", weights="random", **CPU)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(flat(first), flat(load("squeezenet1_0", weights="random", **CPU)))
    torch.manual_seed(0)
    assert torch.equal(flat(first), flat(Model(models.squeezenet1_0())))
    assert first.recipe == {"model": "squeezenet1_0", "weights": "random"}
    torch.manual_seed(5)
    load("sightnet", **CPU)
    assert torch.equal(torch.rand(1), expected)


def test_a_module_of_the_callers_own() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = load(network, labels=list("abcd"), size=32)
    assert (model.name, model.labels, model.size) == ("Sequential", tuple("abcd"), 32)
    for arguments in ({"weights": "random"}, {"weights": "file.safetensors"}):
        with pytest.raises(SightlineError, match="module"):
            load(network, **arguments)


def test_the_embedded_network() -> None:
    model = load(**CPU)
    assert (model.name, model.size, model.labels) == ("sightnet", 160, SIGHTNET_LABELS)
    assert list(model.layers) == [path for path, module in make_sightnet().named_modules() if path]
    assert model.layer("last_conv") in model.layers
    assert model.layer("penultimate") == "fc:in"


# ── weights files ──


@pytest.fixture(scope="module")
def squeezenet_state() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return models.squeezenet1_0().state_dict()


squeezenet = partial(load, "squeezenet1_0", **CPU)

BAD = {
    "pickle_with_code.pt": "refused: it holds more than tensors, and no code from a weights file is run",
    "truncated.safetensors": "is not a whole safetensors file",
    "wrong_shapes.safetensors": r"features\.0\.weight is \(5, 3, 3, 3\) in the file, \(96, 3, 7, 7\) in the network, and 51 more",
    "nan_weights.safetensors": r"features\.3\.squeeze\.weight is missing, and 49 more",
    "empty.png": "neither a torch nor a safetensors file",
    "text.jpg": "neither a torch nor a safetensors file",
    "html.png": "neither a torch nor a safetensors file",
    "rgba.png": "neither a torch nor a safetensors file",
    "animated.gif": "neither a torch nor a safetensors file",
    "no_suffix": "neither a torch nor a safetensors file",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_in_one_line(data: Path, name: str) -> None:
    proof = Path(tempfile.gettempdir()) / "sightline_pickle_was_run"
    proof.unlink(missing_ok=True)
    with pytest.raises(SightlineError, match=f"^{name} .*{BAD[name]}") as caught:
        squeezenet(weights=data / "badinputs" / name)
    assert "\n" not in str(caught.value)
    assert not proof.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "was_run",)

    for protocol in (2, 4):
        (tmp_path / "weights.pt").write_bytes(pickle.dumps({"features.0.weight": Code()}, protocol))
        with pytest.raises(SightlineError, match=r"^weights\.pt is refused"):
            squeezenet(weights=tmp_path / "weights.pt")
    torch.save({"state_dict": Code()}, tmp_path / "zipped.pth")
    with pytest.raises(SightlineError, match=r"^zipped\.pth is refused"):
        squeezenet(weights=tmp_path / "zipped.pth")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(SightlineError, match=r"^module\.pth is refused"):
        squeezenet(weights=tmp_path / "module.pth")
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("name", ["cut.pt", "cut.safetensors"])
def test_cut_files(
    tmp_path: Path, squeezenet_state: dict[str, Tensor], name: str, share: float
) -> None:
    path = tmp_path / name
    save_file(squeezenet_state, path) if name.endswith("safetensors") else torch.save(
        squeezenet_state, path
    )
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(SightlineError, match=r"^cut\.\w+ is (not a whole|neither)") as caught:
        squeezenet(weights=path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", range(5))
def test_garbage_after_the_first_byte_of_a_pickle(tmp_path: Path, seed: int) -> None:
    noise = torch.randint(
        0, 256, (200,), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    (tmp_path / "noise.pt").write_bytes(b"\x80\x02" + bytes(noise.tolist()))
    with pytest.raises(SightlineError, match=r"^noise\.pt is"):
        squeezenet(weights=tmp_path / "noise.pt")


def test_files_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").touch()
    with pytest.raises(
        SightlineError,
        match=r"no weights file .*wieghts\.safetensors; did you mean weights\.safetensors\?",
    ):
        squeezenet(weights=tmp_path / "wieghts.safetensors")
    with pytest.raises(SightlineError, match="no weights file"):
        squeezenet(weights=tmp_path / "nowhere" / "weights.safetensors")
    with pytest.raises(SightlineError, match="no weights file"):
        squeezenet(weights=tmp_path)


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}, {"state_dict": {}}, torch.zeros(3)])
def test_files_without_weights_by_name(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(
        SightlineError, match=r"other\.pt holds no weights by name; a state dict is expected"
    ):
        squeezenet(weights=tmp_path / "other.pt")


WRAPPED = {
    "plain": lambda state: state,
    "lightning": lambda state: {
        "epoch": 3,
        "state_dict": {f"model.{key}": value for key, value in state.items()},
    },
    "parallel": lambda state: {
        "state_dict": {f"module.{key}": value for key, value in state.items()}
    },
    "compiled": lambda state: {
        "model": {f"_orig_mod.{key}": value for key, value in state.items()}
    },
    "both": lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
    "nested": lambda state: {"model_state_dict": {"net": state}, "optimizer": {"lr": 0.1}},
    "half": lambda state: {key: value.half() for key, value in state.items()},
    "double": lambda state: {key: value.double() for key, value in state.items()},
}


@pytest.mark.parametrize("wrapping", WRAPPED)
def test_usual_wrappings_are_looked_through(
    tmp_path: Path, squeezenet_state: dict[str, Tensor], wrapping: str
) -> None:
    torch.save(WRAPPED[wrapping](squeezenet_state), tmp_path / "wrapped.pt")
    model = squeezenet(weights=tmp_path / "wrapped.pt")
    for key, value in model.network.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(
            value,
            squeezenet_state[key],
            rtol=1e-3 if wrapping == "half" else 0,
            atol=1e-6 if wrapping == "half" else 0,
        )
    assert len(model.recipe["sha256"]) == 64


def test_names_that_do_not_fit(tmp_path: Path, squeezenet_state: dict[str, Tensor]) -> None:
    def refused(change: dict[str, Any], message: str) -> None:
        state = {
            key: value for key, value in {**squeezenet_state, **change}.items() if value is not None
        }
        save_file(state, tmp_path / "state.safetensors")
        with pytest.raises(SightlineError, match=f"^state.safetensors .*{message}$"):
            squeezenet(weights=tmp_path / "state.safetensors")

    refused(
        {"features.3.squeeze.bias": None},
        r"doesn't fit squeezenet1_0: features\.3\.squeeze\.bias is missing",
    )
    refused(
        {"extra": torch.zeros(1), "more": torch.zeros(1)},
        r"doesn't fit squeezenet1_0: the network has no extra, and 1 more",
    )
    refused(
        {"features.0.bias": torch.zeros(5)},
        r"features\.0\.bias is \(5,\) in the file, \(96,\) in the network",
    )
    refused(
        {"features.0.bias": torch.full((96,), float("nan"))},
        r"is refused: features\.0\.bias holds NaN or infinite weights",
    )
    refused(
        {"features.0.bias": torch.full((96,), float("inf"))},
        r"is refused: features\.0\.bias holds NaN or infinite weights",
    )


def test_a_fine_tuned_head_sets_the_number_of_classes(tmp_path: Path) -> None:
    torch.manual_seed(2)
    network = models.resnet18(num_classes=7).eval()
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in network.state_dict().items()}},
        tmp_path / "tuned.pth",
    )
    labels = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu"]
    model = load("resnet18", weights=tmp_path / "tuned.pth", labels=labels, **CPU)
    image = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(
        model.logits(image), network(model.normalize(image)), rtol=1e-4, atol=1e-4
    )
    assert model.labels == tuple(labels)
    assert model.index("fox") == 5
    assert load("resnet18", weights=tmp_path / "tuned.pth", **CPU).labels == tuple(
        f"class {i}" for i in range(7)
    )
    with pytest.raises(SightlineError, match="resnet18 has 7 logits, but 2 labels were given"):
        load("resnet18", weights=tmp_path / "tuned.pth", labels=["a", "b"], **CPU).index("a")
    assert load("resnet18", weights=tmp_path / "tuned.pth", **CPU).layer("conv5_x") == "layer4"


def test_fine_tuned_heads_of_other_kinds(tmp_path: Path) -> None:
    for name, options in (
        ("squeezenet1_1", {}),
        ("mobilenet_v2", {}),
        ("googlenet", {"aux_logits": True, "init_weights": False}),
    ):
        save_file(
            models.get_model(name, weights=None, num_classes=5, **options).state_dict(),
            tmp_path / "tuned.safetensors",
        )
        assert len(load(name, weights=tmp_path / "tuned.safetensors", **CPU).labels) == 5
    other = models.resnet34(num_classes=5).state_dict()
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(SightlineError, match=r"other\.safetensors doesn't fit resnet18"):
        load("resnet18", weights=tmp_path / "other.safetensors", **CPU)


def test_the_embedded_network_with_other_weights(tmp_path: Path) -> None:
    network = make_sightnet(4)
    save_file(network.state_dict(), tmp_path / "four.safetensors")
    model = load(weights=tmp_path / "four.safetensors", **CPU)
    assert model.labels == tuple(f"class {i}" for i in range(4))
    torch.testing.assert_close(flat(model), flat(Model(network)))


def test_a_round_trip_through_both_formats(
    tmp_path: Path, squeezenet_state: dict[str, Tensor]
) -> None:
    save_file(squeezenet_state, tmp_path / "a.safetensors")
    torch.save(squeezenet_state, tmp_path / "a.pt")
    torch.save(squeezenet_state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for path in sorted(tmp_path.iterdir()):
        state = read_weights(path)
        assert state.keys() == squeezenet_state.keys()
        assert all(torch.equal(state[key], value) for key, value in squeezenet_state.items())
    network = models.squeezenet1_0()
    fill_network_weights(network, squeezenet_state, tmp_path / "a.pt", "squeezenet1_0")
    assert torch.equal(
        network.state_dict()["classifier.1.bias"], squeezenet_state["classifier.1.bias"]
    )
    assert count_classes(network) == 1000


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
        match=r"^the pretrained weights of squeezenet1_0 can't be downloaded \(.*\); give a file with weights=FILE$",
    ):
        load("squeezenet1_0")


def test_timm_weights_that_can_not_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("An error happened while trying to locate the file on the Hub\nand more")

    monkeypatch.setattr("timm.models._builder.load_pretrained", fail)
    with pytest.raises(
        SightlineError,
        match=r"^the pretrained weights of resnet10t can't be downloaded \(An error happened .* the Hub\); give a file",
    ):
        load("resnet10t")


def test_downloads_verify_their_sha256(
    monkeypatch: pytest.MonkeyPatch, squeezenet_state: dict[str, Tensor]
) -> None:
    asked: dict[str, Any] = {}

    def deliver(url: str, *_: Any, **options: Any) -> dict[str, Tensor]:
        asked.update(options, url=url)
        return squeezenet_state

    monkeypatch.setattr(inspect.getmodule(models.get_model), "load_state_dict_from_url", deliver)
    model = load("squeezenet1_0", **CPU)
    assert asked["check_hash"] is True
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
    file, options, least = REAL[name]
    model = load(name, weights=data / "nets" / file, **options, **CPU)
    index = {
        entry["wnid"]: entry["index"]
        for entry in json.loads((data / "imagenet_labels.json").read_text(encoding="utf-8"))
    }
    photographs = sorted((data / "imagenet_samples").glob("*.jpg"))[::20]
    image = torch.cat([model.fit(read(path)) for path in photographs])
    truth = torch.tensor([index[path.name.split("_")[0]] for path in photographs])
    with torch.no_grad():
        first = model.logits(image).topk(5).indices
    assert len(photographs) == 40
    assert (first == truth[:, None]).any(1).float().mean() >= least
    for path, label in zip(photographs[:3], truth.tolist(), strict=False):
        assert model.index(path.stem.split("_", 1)[1].replace("_", " ")) == label


def test_real_weights_are_those_of_the_file(data: Path) -> None:
    path = data / "nets" / "squeezenet1_0.safetensors"
    model, state = squeezenet(weights=path), load_file(path)
    assert all(
        torch.equal(value, state[key].float()) for key, value in model.network.state_dict().items()
    )
    assert model.recipe["weights"] == str(path.resolve())
