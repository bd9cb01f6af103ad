"""VGG's weights are known by their first filters and loaded from every spelling of their files; a network fed otherwise is refused."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import small_network
from torch import Tensor, nn
from torchvision.models import vgg16
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
CAFFE = {"mean": (123.68 / 255, 116.779 / 255, 103.939 / 255), "std": (1 / 255,) * 3}
RAW = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255,) * 3}
CAFFES, TORCHVISIONS = KNOWN_PUBLISHED_WEIGHTS[1], KNOWN_PUBLISHED_WEIGHTS[2]


def filters(known: PublishedWeights, *, turned: bool = False) -> Tensor:
    """Random filters 64×3×3×3 with the telling one in its place, times 0.03, with its channels turned round or not."""
    weight = torch.randn(64, 3, 3, 3, generator=torch.Generator().manual_seed(0)) / 5
    weight[known.filter_index] = (
        torch.tensor([float(value) for value in known.filter_values.split()]).view(3, 3, 3) * 3e-4
    )
    return weight.flip(1) if turned else weight


def network(known: PublishedWeights, *before: nn.Module, turned: bool = False) -> nn.Sequential:
    """A first convolution with the filters of `known`, what stands before it, and five classes."""
    body = nn.Sequential(
        *before,
        nn.Conv2d(3, 64, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 5),
    )
    body[len(before)].weight.data = filters(known, turned=turned)
    return body


class Fed(nn.Module):
    """Preprocessing as people write it into their network."""

    def __init__(self, does: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.does = does

    def forward(self, image: Tensor) -> Tensor:
        return self.does(image)


# ── known weights ──


@pytest.mark.parametrize("known", KNOWN_PUBLISHED_WEIGHTS, ids=lambda known: known.name)
@pytest.mark.parametrize("turned", [False, True])
def test_each_is_known_by_its_filter_in_either_order(known: PublishedWeights, turned: bool) -> None:
    noisy = network(known, turned=turned)
    noisy[0].weight.data[known.filter_index] *= 1 + 0.1 * torch.randn(
        3, 3, 3, generator=torch.Generator().manual_seed(1)
    )
    assert recognize_published_weights(noisy) == replace(
        known, channel_order=known.channel_order[::-1] if turned else known.channel_order
    )


def test_others_are_not_known() -> None:
    assert recognize_published_weights(small_network()) is None
    assert recognize_published_weights(nn.Linear(2, 2)) is None
    assert recognize_published_weights(nn.Conv2d(3, 64, 3, device="meta")) is None
    assert all(recognize_published_weights(nn.Conv2d(3, 64, 3)) is None for _ in range(200))


def test_the_telling_filters_tell_red_from_blue() -> None:
    for known in KNOWN_PUBLISHED_WEIGHTS:
        filter = torch.tensor([float(value) for value in known.filter_values.split()]).view(3, 3, 3)
        assert torch.cosine_similarity(filter.flatten(), filter.flip(0).flatten(), 0) < 0


# ── pairs ──


@pytest.mark.parametrize(
    ("body", "given"),
    [
        (network(TORCHVISIONS), IMAGENET),
        (network(TORCHVISIONS), {"mean": (0.449,) * 3, "std": (0.226,) * 3}),
        (network(CAFFES, turned=True), CAFFE),
        (network(CAFFES, turned=True), {"mean": (0.5,) * 3, "std": (1 / 256,) * 3}),
        (network(CAFFES, Fed(lambda x: x.flip(1))), CAFFE),
        (network(CAFFES, Fed(lambda x: x.flip(1) * 255 - torch.tensor([104.0, 117, 124]).view(3, 1, 1))), {"mean": (0,) * 3, "std": (1,) * 3}),
        (network(CAFFES, nn.InstanceNorm2d(3)), IMAGENET),  # what this is fed can't be told from its answers to plain colours
        (small_network(), RAW),
    ],
    ids=["torchvision", "one deviation", "turned", "about", "flipped within", "all within", "normalized by the image", "unknown"],
)  # fmt: skip
def test_right_pairs_are_taken(body: nn.Module, given: dict[str, Any]) -> None:
    assert sl.load(body, size=32, **given).probabilities(torch.rand(1, 3, 32, 32)).shape == (1, 5)


@pytest.mark.parametrize(
    ("body", "given", "wanted", "fed"),
    [
        (network(TORCHVISIONS), RAW, "RGB from -2.12 to 2.64", "RGB from 0 to 255"),
        (
            network(TORCHVISIONS),
            {"mean": (0.5,) * 3, "std": (0.5,) * 3},
            "RGB from -2.12 to 2.64",
            "RGB from -1 to 1",
        ),
        (
            network(TORCHVISIONS, Fed(lambda x: x.flip(1))),
            IMAGENET,
            "RGB from -2.12 to 2.64",
            "BGR from -2.12 to 2.64",
        ),
        (network(CAFFES), IMAGENET, "BGR from -124 to 151", "RGB from -2.12 to 2.64"),
        (network(CAFFES), CAFFE, "BGR from -124 to 151", "RGB from -124 to 151"),
        (network(CAFFES, turned=True), IMAGENET, "RGB from -124 to 151", "RGB from -2.12 to 2.64"),
        (
            network(CAFFES, Fed(lambda x: x.flip(1))),
            RAW,
            "BGR from -124 to 151",
            "BGR from 0 to 255",
        ),
    ],
    ids=[
        "0 to 255",
        "-1 to 1",
        "turned",
        "torchvision's",
        "not turned",
        "turned, torchvision's",
        "no mean",
    ],
)
def test_wrong_pairs_are_refused(
    body: nn.Module, given: dict[str, Any], wanted: str, fed: str
) -> None:
    with pytest.raises(SightlineError) as caught:
        sl.load(body, size=32, **given)
    assert f"trained on {wanted}, but its first layer is fed {fed}; " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pair_that_can_not_be_measured_is_left_to_whoever_asks_it() -> None:
    body = network(CAFFES, Fed(lambda x: x[:, :, : x.shape[2] // 0]))
    assert sl.load(body, size=32).name == "Sequential"


def test_a_network_that_sees_luminance_is_not_asked() -> None:
    assert (
        sl.load(
            network(TORCHVISIONS, Fed(lambda x: x.expand(-1, 3, -1, -1))),
            size=32,
            mean=(0.449,),
            std=(0.226,),
        ).size
        == 32
    )


@pytest.mark.parametrize(
    "given", [{"mean": (0, 0, 0)}, {"std": (1, 1, 1)}, {"mean": (0.449,), "std": (0.226,)}]
)
def test_a_librarys_own_weights_keep_their_normalization(given: dict[str, Any]) -> None:
    with pytest.raises(
        SightlineError,
        match=r"^sightnet's own weights were trained with (mean|std) \(0\.\d+, 0\.\d+, 0\.\d+\); given was \(",
    ):
        sl.load("sightnet", device="cpu", **given)
    assert sl.load("sightnet", device="cpu", mean=(0.48, 0.46, 0.41)).size == 160
    assert sl.load("sightnet", weights="random", device="cpu", **given).size == 160


# ── files ──


def small_vgg() -> VGG:
    """torchvision's VGG with eight convolutions and few channels, its first layer that of Caffe's VGG-16."""
    torch.manual_seed(0)
    body = VGG(nn.Sequential(), num_classes=4, init_weights=False)
    body.features, body.classifier = (
        make_layers([64, 4, "M", 4, 4, "M", 4, "M", 4, 4, "M", 4], batch_norm=False),
        nn.Sequential(nn.Linear(196, 4)),
    )  # type: ignore[arg-type]
    body.features[0].weight.data = filters(CAFFES)
    return body


def test_every_spelling_gives_the_same_features() -> None:
    state = {
        key: value for key, value in small_vgg().state_dict().items() if key.startswith("features")
    }
    bare = {key.removeprefix("features."): value for key, value in state.items()}
    at = {
        "0": "conv1_1",
        "2": "conv1_2",
        "5": "conv2_1",
        "7": "conv2_2",
        "10": "conv3_1",
        "13": "conv4_1",
        "15": "conv4_2",
        "18": "conv5_1",
    }
    gatys = {f"{at[key.split('.')[0]]}.{key.split('.')[1]}": value for key, value in bare.items()}
    numbers = dict(zip(at, ("2", "5", "9", "12", "16", "20", "22", "26"), strict=True))
    adain = {
        "0.weight": 255 * torch.eye(3).flip(0)[:, :, None, None],
        "0.bias": torch.tensor([-103.939, -116.779, -123.68]),
    }
    adain |= {
        f"{numbers[key.split('.')[0]]}.{key.split('.')[1]}": value for key, value in bare.items()
    }
    for spelling in (state, bare, gatys, adain):
        found, body = convert_vgg_state_dict(spelling, small_vgg())
        assert sorted(found) == sorted(body.state_dict()) == sorted(state)
        assert all(torch.equal(found[key], state[key]) for key in state)
        assert not hasattr(body, "classifier")


def test_johnsons_classifier_is_torchvisions() -> None:
    shifted = {"0": "1", "3": "4", "6": "6"}
    with torch.device("meta"):
        body = vgg16()
    own = body.state_dict()
    state = {
        ".".join(["classifier", shifted[key.split(".")[1]], key.split(".")[2]])
        if key.startswith("classifier")
        else key: value
        for key, value in own.items()
    }
    found, whole = convert_vgg_state_dict(state, body)
    assert whole is body
    assert {key: value.shape for key, value in found.items()} == {
        key: value.shape for key, value in own.items()
    }


def test_other_names_are_left_alone() -> None:
    state = {
        "stem.weight": torch.zeros(1),
        "classifier.0.weight": torch.zeros(1),
        "undotted": torch.zeros(1),
    }
    assert convert_vgg_state_dict(state, small_vgg())[0] == state


@pytest.mark.parametrize("turned", [False, True])
def test_caffes_weights_bring_their_normalization_and_see_rgb(turned: bool) -> None:
    body, image = small_vgg(), torch.rand(1, 3, 16, 16)
    if turned:
        body.features[0].weight.data = filters(CAFFES, turned=True)
    bgr = (image * 255 - torch.tensor([123.68, 116.779, 103.939]).view(1, 3, 1, 1)).flip(1)
    weight = filters(CAFFES)
    expected = nn.functional.conv2d(bgr, weight, body.features[0].bias, padding=1)
    facts = adopt_caffe_normalization(body)
    model = Model(nn.Sequential(OrderedDict(features=body.features)), size=16, **facts)
    assert torch.allclose(
        model.features(image, "features.0")["features.0"], expected, rtol=1e-4, atol=1e-3
    )
    assert recognize_published_weights(body) == replace(CAFFES, channel_order="RGB")
    assert adopt_caffe_normalization(body) == facts  # once turned, it stays


def test_torchvisions_weights_need_no_other_normalization() -> None:
    body = small_vgg()
    body.features[0].weight.data = filters(TORCHVISIONS)
    assert adopt_caffe_normalization(body) == {}
    assert torch.equal(body.features[0].weight.data, filters(TORCHVISIONS))


def test_a_file_of_caffes_features_becomes_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import models

    monkeypatch.setattr(models, "get_model", lambda *_args, **_options: small_vgg())
    torch.save(small_vgg().features.state_dict(), tmp_path / "vgg_conv.pth")
    model = sl.load("vgg16", weights=tmp_path / "vgg_conv.pth", device="cpu", size=16)
    assert model.mean.flatten().tolist() == pytest.approx(list(CAFFE["mean"]))
    assert model.std.flatten().tolist() == pytest.approx([1 / 255] * 3)
    assert model.layer("relu2_2") == "features.8"
    assert len(model.labels) == 4
    for wrong in (IMAGENET, RAW):
        with pytest.raises(
            SightlineError, match="Caffe's VGG-16, which were trained on RGB from -124 to 151, but"
        ):
            sl.load("vgg16", weights=tmp_path / "vgg_conv.pth", device="cpu", size=16, **wrong)
