"""Classifiers of torchvision, against torchvision's own networks and tables."""

from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from sightline.errors import SightlineError
from sightline.models.zoo.libraries import torchvision_classifiers
from sightline.models.zoo.libraries.torchvision_classifiers import (
    build_torchvision_network,
    download_torchvision_network,
)

LIGHT = ["squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5"]


@pytest.mark.parametrize("name", LIGHT)
def test_settings_are_those_of_the_best_published_weights(name: str) -> None:
    built = build_torchvision_network(name, "random", {})
    published = torchvision.models.get_model_weights(name).DEFAULT
    transforms = published.transforms()
    assert built.settings["mean"] == transforms.mean
    assert built.settings["std"] == transforms.std
    assert built.settings["size"] == transforms.crop_size[0]
    assert built.settings["resize"] == transforms.resize_size[0]
    assert list(built.settings["labels"]) == published.meta["categories"]


def test_weights_of_a_file_with_other_classes(tmp_path: Path) -> None:
    torch.manual_seed(3)
    trained = torchvision.models.squeezenet1_1(num_classes=4).eval()
    torch.save(trained.state_dict(), tmp_path / "weights.pt")
    built = build_torchvision_network("squeezenet1_1", str(tmp_path / "weights.pt"), {})
    assert built.settings["labels"] == ()
    image = torch.rand(1, 3, 64, 80, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(built.network.eval()(image), trained(image))


def test_options_reach_the_constructor() -> None:
    built = build_torchvision_network("mobilenet_v3_small", "random", {"num_classes": 3})
    assert list(built.network.parameters())[-1].shape == (3,)
    with pytest.raises(SightlineError, match="squeezenet1_1 can't be built with depth=3"):
        build_torchvision_network("squeezenet1_1", "random", {"depth": 3})


@pytest.mark.parametrize(
    ("error", "options", "message"),
    [
        (OSError("no route"), {}, r"can't be downloaded \(no route\); give a file"),
        (RuntimeError("invalid hash value"), {}, r"can't be downloaded \(invalid hash value\)"),
        (ValueError("num_classes"), {"num_classes": 3}, "can't be built with num_classes=3"),
    ],
)
def test_downloads_that_fail(
    error: Exception, options: dict[str, int], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> nn.Module:
        raise error

    monkeypatch.setattr(torchvision.models, "get_model", fail)
    with pytest.raises(SightlineError, match=message):
        download_torchvision_network("resnet18", options)


def test_inception_is_built_as_its_files_are() -> None:
    assert "inception_v3" in torchvision_classifiers.INCEPTION_NAMES
    built = build_torchvision_network("googlenet", "random", {})
    assert built.network.transform_input is True
    assert built.network.aux_logits is True
