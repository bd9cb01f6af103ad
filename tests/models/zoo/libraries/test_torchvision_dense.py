"""Detectors and segmentation networks of torchvision: size, normalization, labels, own heads."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

import sightline as sl
from sightline.errors import SightlineError
from sightline.models.zoo.builders import find_network_builder
from sightline.models.zoo.libraries.torchvision_dense import (
    find_detector_settings,
    find_scored_classes,
)

DETECTION = models.detection
SEGMENTATION = models.segmentation


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("fasterrcnn_mobilenet_v3_large_320_fpn", 320),
        ("maskrcnn_resnet50_fpn_v2", 800),
        ("keypointrcnn_resnet50_fpn", 800),
        ("retinanet_resnet50_fpn_v2", 800),
        ("fcos_resnet50_fpn", 800),
        ("ssd300_vgg16", (300, 300)),
    ],
)
def test_detectors_normalize_for_themselves(name: str, size: int | tuple[int, int]) -> None:
    with torch.device("meta"):
        settings = find_network_builder(name)(name, "random", {}).settings
    published = models.get_model_weights(name).DEFAULT
    assert settings.get("labels") == tuple(published.meta["categories"])
    assert settings.get("mean") == (0, 0, 0)
    assert settings.get("std") == (1, 1, 1)
    assert settings.get("size") == size


@pytest.mark.parametrize("name", ["deeplabv3_resnet101", "fcn_resnet50"])
def test_segmentation_networks_have_the_size_of_their_weights(name: str) -> None:
    with torch.device("meta"):
        settings = find_network_builder(name)(name, "random", {}).settings
    assert settings.get("size") == 520
    assert settings.get("mean") == [0.485, 0.456, 0.406]
    labels = settings.get("labels", ())
    assert (len(labels), labels[0], labels[-1]) == (21, "__background__", "tvmonitor")


def test_a_detector_runs_on_an_image_in_0_to_1() -> None:
    name = "ssdlite320_mobilenet_v3_large"
    model = sl.load(name, weights="random", device="cpu", size=(96, 128), num_classes=4)
    assert model.recipe["options"] == {"num_classes": 4, "size": (96, 128)}
    assert model.output_kind == "detections"
    assert model.labels == ("class 0", "class 1", "class 2", "class 3")
    image = torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(4))
    torch.manual_seed(0)
    network = models.get_model(name, weights=None, weights_backbone=None, num_classes=4).eval()
    with torch.no_grad():
        expected = network(image)[0]
        output = model.run_network(image)[0]
    assert len(expected["scores"]) > 0
    torch.testing.assert_close(output["scores"], expected["scores"], rtol=1e-3, atol=1e-4)


def test_a_file_with_an_auxiliary_head_and_its_own_classes(tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = SEGMENTATION.deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=6, aux_loss=True
    )
    save_file(network.state_dict(), tmp_path / "fields.safetensors")
    name = "deeplabv3_mobilenet_v3_large"
    model = sl.load(name, weights=tmp_path / "fields.safetensors", device="cpu", size=(48, 64))
    image = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(5))
    assert model.output_kind == "dense"
    assert model.labels == tuple(f"class {index}" for index in range(6))
    with torch.no_grad():
        expected = network.eval()(model.normalize(image))["out"]
        output = model.run_network(image)["out"]
    torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-4)


HOLLOW = {
    "faster": lambda count: DETECTION.fasterrcnn_mobilenet_v3_large_fpn(
        weights=None, weights_backbone=None, num_classes=count
    ),
    "retina": lambda count: DETECTION.retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=count
    ),
    "fcos": lambda count: DETECTION.fcos_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=count
    ),
    "ssd": lambda count: DETECTION.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=count
    ),
    "fcn": lambda count: SEGMENTATION.fcn_resnet50(
        weights=None, weights_backbone=None, num_classes=count
    ),
    "lraspp": lambda count: SEGMENTATION.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=count
    ),
}


@pytest.mark.parametrize("kind", HOLLOW)
def test_classes_of_a_fine_tuned_detector(kind: str) -> None:
    with torch.device("meta"):
        network = HOLLOW[kind](91)
        state = HOLLOW[kind](7).state_dict()
    assert find_scored_classes(network, state, 91) == 7
    assert find_scored_classes(network, network.state_dict(), 91) is None
    assert find_scored_classes(network, {"other": torch.zeros(3)}, 91) is None


def test_a_file_of_another_detector_is_refused(tmp_path: Path) -> None:
    network = SEGMENTATION.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    save_file(network.state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(SightlineError, match=r"other\.safetensors doesn't fit ssdlite320"):
        sl.load("ssdlite320_mobilenet_v3_large", weights=tmp_path / "other.safetensors")


def test_a_detector_given_as_a_module_brings_the_same() -> None:
    with torch.device("meta"):
        network = DETECTION.fasterrcnn_mobilenet_v3_large_320_fpn(
            weights=None, weights_backbone=None, min_size=160
        )
    settings = find_detector_settings(network)
    assert settings == {"mean": (0, 0, 0), "std": (1, 1, 1), "size": 160}
    assert find_detector_settings(nn.ReLU()) == {}
