"""VGG's weights are recognized by their first filters, and loaded from every spelling."""

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import small_network
from torch import Tensor, nn
from torchvision import models
from torchvision.models.vgg import VGG, make_layers

import sightline as sl
from sightline.errors import SightlineError
from sightline.models.model import Model
from sightline.models.weights.published import (
    KNOWN_PUBLISHED_WEIGHTS,
    PublishedWeights,
    adopt_caffe_normalization,
    convert_vgg_state_dict,
    recognize_published_weights,
)

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
RAW = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255,) * 3}
CAFFE_MEAN = (123.68, 116.779, 103.939)
CAFFE_VGG16, TORCHVISION_VGG16 = KNOWN_PUBLISHED_WEIGHTS[1], KNOWN_PUBLISHED_WEIGHTS[2]


def make_filters(published: PublishedWeights, *, flipped: bool = False) -> Tensor:
    """Random filters 64×3×3×3 with the known one in its position, flipped to BGR or not."""
    weight = torch.randn(64, 3, 3, 3, generator=torch.Generator().manual_seed(0)) / 5
    weight[published.filter_index] = published.parse_filter() * 3e-4
    return weight.flip(1) if flipped else weight


# ── recognition ──


@pytest.mark.parametrize("published", KNOWN_PUBLISHED_WEIGHTS, ids=lambda published: published.name)
@pytest.mark.parametrize("flipped", [False, True])
def test_each_is_recognized_in_either_order(published: PublishedWeights, flipped: bool) -> None:
    noise = torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(1))
    network = nn.Sequential(nn.Flatten(), nn.Conv2d(3, 64, 3), nn.Conv2d(64, 3, 3))
    network[1].weight.data = make_filters(published, flipped=flipped)
    network[1].weight.data[published.filter_index] *= 1 + 0.1 * noise
    order = published.channel_order[::-1] if flipped else published.channel_order
    assert recognize_published_weights(network) == replace(published, channel_order=order)


def test_a_filter_that_is_only_alike_is_not_enough() -> None:
    """A cosine of 0.94 to the known filter."""
    known = CAFFE_VGG16.parse_filter()
    other = torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(1))
    other -= known * (other * known).sum() / known.square().sum()
    angle = torch.tensor(0.94).acos()
    mixed = angle.cos() * known / known.norm() + angle.sin() * other / other.norm()
    convolution = nn.Conv2d(3, 64, 3)
    convolution.weight.data = make_filters(CAFFE_VGG16)
    convolution.weight.data[CAFFE_VGG16.filter_index] = mixed
    assert recognize_published_weights(convolution) is None


def test_others_are_not_recognized() -> None:
    assert recognize_published_weights(small_network()) is None
    assert recognize_published_weights(nn.Linear(2, 2)) is None
    assert recognize_published_weights(nn.Conv2d(3, 64, 3, device="meta")) is None
    assert all(recognize_published_weights(nn.Conv2d(3, 64, 3)) is None for _ in range(200))


def test_the_filters_tell_red_from_blue() -> None:
    for published in KNOWN_PUBLISHED_WEIGHTS:
        filter = published.parse_filter()
        assert torch.cosine_similarity(filter.flatten(), filter.flip(0).flatten(), 0) < 0


# ── files ──


def make_small_vgg() -> Any:
    """torchvision's VGG with eight convolutions, few channels, and Caffe's first filters."""
    torch.manual_seed(0)
    network: Any = VGG(nn.Sequential(), num_classes=4, init_weights=False)
    layers: list[str | int] = [64, 4, "M", 4, 4, "M", 4, "M", 4, 4, "M", 4]
    network.features = make_layers(layers, batch_norm=False)
    network.classifier = nn.Sequential(nn.Linear(196, 4))
    network.features[0].weight.data = make_filters(CAFFE_VGG16)
    return network


# Of that network: torchvision's index, Gatys' name, AdaIN's index after one more convolution.
SPELLINGS = [
    ("0", "conv1_1", "2"),
    ("2", "conv1_2", "5"),
    ("5", "conv2_1", "9"),
    ("7", "conv2_2", "12"),
    ("10", "conv3_1", "16"),
    ("13", "conv4_1", "20"),
    ("15", "conv4_2", "22"),
    ("18", "conv5_1", "26"),
]
ADAIN_PREPROCESSING = {
    "0.weight": 255 * torch.eye(3).flip(0)[:, :, None, None],
    "0.bias": torch.tensor([-103.939, -116.779, -123.68]),
}


@pytest.mark.parametrize("spelling", ["torchvision", "bare", "Gatys", "AdaIN"])
def test_every_spelling_gives_the_same_features(spelling: str) -> None:
    network = make_small_vgg()
    features = network.features.state_dict()
    expected = {f"features.{key}": value for key, value in features.items()}
    state: dict[str, Tensor] = {}
    for index, gatys, adain in SPELLINGS:
        prefixes = {
            "torchvision": f"features.{index}",
            "bare": index,
            "Gatys": gatys,
            "AdaIN": adain,
        }
        for parameter in ("weight", "bias"):
            state[f"{prefixes[spelling]}.{parameter}"] = features[f"{index}.{parameter}"]
    if spelling == "AdaIN":
        state = {**ADAIN_PREPROCESSING, **state}
    assert len(state) == len(features) + (2 if spelling == "AdaIN" else 0)

    converted, filled = convert_vgg_state_dict(state, network)
    assert sorted(converted) == sorted(filled.state_dict()) == sorted(expected)
    assert all(torch.equal(converted[key], expected[key]) for key in expected)
    assert not hasattr(filled, "classifier")


def test_johnsons_classifier_is_torchvisions() -> None:
    with torch.device("meta"):
        network = models.vgg16()
    expected = network.state_dict()
    johnson = {"classifier.0": "classifier.1", "classifier.3": "classifier.4"}
    state: dict[str, Tensor] = {}
    for key, value in expected.items():
        module, _, parameter = key.rpartition(".")
        state[f"{johnson.get(module, module)}.{parameter}"] = value
    assert "classifier.4.bias" in state
    converted, filled = convert_vgg_state_dict(state, network)
    assert filled is network
    assert list(converted) == list(expected)
    assert all(converted[key] is expected[key] for key in expected)


def test_other_names_are_left_alone() -> None:
    state = {
        "stem.weight": torch.zeros(1),
        "classifier.0.weight": torch.zeros(1),
        "undotted": torch.zeros(1),
    }
    assert convert_vgg_state_dict(state, make_small_vgg())[0] == state


@pytest.mark.parametrize("flipped", [False, True])
def test_caffes_weights_bring_their_normalization_and_see_rgb(flipped: bool) -> None:
    network = make_small_vgg()
    network.features[0].weight.data = make_filters(CAFFE_VGG16, flipped=flipped)
    image = torch.rand(2, 3, 16, 20, generator=torch.Generator().manual_seed(1))
    bgr = (image * 255 - torch.tensor(CAFFE_MEAN).view(1, 3, 1, 1)).flip(1)
    bias = network.features[0].bias
    expected = nn.functional.conv2d(bgr, make_filters(CAFFE_VGG16), bias, padding=1)
    settings: dict[str, Any] = adopt_caffe_normalization(network)
    model = Model(nn.Sequential(OrderedDict(features=network.features)), size=16, **settings)
    output = model.features(image, "features.0")["features.0"]
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-3)
    assert recognize_published_weights(network) == replace(CAFFE_VGG16, channel_order="RGB")
    assert adopt_caffe_normalization(network) == settings, "once flipped, it stays"


def test_torchvisions_weights_need_no_other_normalization() -> None:
    network = make_small_vgg()
    network.features[0].weight.data = make_filters(TORCHVISION_VGG16)
    assert adopt_caffe_normalization(network) == {}
    assert torch.equal(network.features[0].weight.data, make_filters(TORCHVISION_VGG16))


def test_a_file_of_caffes_features_becomes_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "get_model", lambda *_args, **_options: make_small_vgg())
    weights = tmp_path / "vgg_conv.pth"
    torch.save(make_small_vgg().features.state_dict(), weights)
    model = sl.load("vgg16", weights=weights, device="cpu", size=16)
    assert (model.mean.flatten() * 255).tolist() == pytest.approx(CAFFE_MEAN)
    assert (model.std.flatten() * 255).tolist() == pytest.approx([1] * 3)
    assert model.layer("relu2_2") == "features.8"
    assert len(model.labels) == 4
    for settings in (IMAGENET, RAW):
        with pytest.raises(
            SightlineError, match="Caffe's VGG-16, which were trained on RGB from -124 to 151, but"
        ):
            sl.load("vgg16", weights=weights, device="cpu", size=16, **settings)
