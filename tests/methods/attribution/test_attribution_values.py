"""What `values["attribution"]` promises, over every method that explains an image."""

from functools import cache
from typing import Any

import pytest
import torch
from helpers import LABELS, small_network
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

import sightline as sl
from sightline.methods import load_methods
from sightline.registry.method import Method

HEIGHT = 40
WIDTH = 56
METHODS = {name: method for name, method in load_methods().items() if method.attribution}

# Short runs.
OPTIONS: dict[str, dict[str, Any]] = {
    "occlusion": {"window": 8, "stride": 6},
    "rise": {"masks": 12, "cells": 4, "batch": 5},
    "saliency": {"samples": 3},
}

# Kinds whose attribution can be negative.
SIGNED = {
    ("saliency", "gradient_input"),
    ("saliency", "smoothgrad"),
    ("saliency", "integrated"),
    ("saliency", "blur_ig"),
    ("saliency", "expected"),
    ("occlusion", ""),
    ("rise", ""),
    ("cam", "cam"),
    ("cam", "eigencam"),
}


def list_kinds() -> list[tuple[str, str]]:
    """Every method that explains an image, with each of its kinds ("" where it has none)."""
    pairs: list[tuple[str, str]] = []
    for name, method in METHODS.items():
        assert method.attribution is not None
        parameter = method.attribution.kind_parameter
        kinds = method.parameters[parameter].choices if parameter else ("",)
        pairs += [(name, kind) for kind in kinds]
    return pairs


every_kind = pytest.mark.parametrize(("name", "kind"), list_kinds())


@cache
def convolutional() -> sl.Model:
    """The tests' small network."""
    return sl.load(
        small_network(), mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.3), labels=LABELS, size=32
    )


@cache
def transformer() -> sl.Model:
    """A small vision transformer for 5×7 patches; it resamples its positions for other sizes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = VisionTransformer(
            img_size=(HEIGHT, WIDTH),
            patch_size=8,
            embed_dim=16,
            depth=2,
            num_heads=2,
            num_classes=len(LABELS),
            dynamic_img_size=True,
        )
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(std=1.5 / parameter[0].numel() ** 0.5)
    return sl.load(network.eval(), labels=LABELS, size=HEIGHT)


@cache
def two_images() -> Tensor:
    """Two different smooth images, 2×3×40×56."""
    coarse = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(3))
    images = F.interpolate(coarse, size=(HEIGHT, WIDTH), mode="bicubic", align_corners=False)
    return images.clamp(0, 1)


def run(name: str, kind: str, image: Tensor, **options: Any) -> sl.Result:
    """The method with one kind on images, with short options."""
    method: Method = METHODS[name]
    assert method.attribution is not None
    options = {**OPTIONS.get(name, {}), **options}
    if kind:
        options[method.attribution.kind_parameter] = kind
    model = transformer() if name == "attention" else convolutional()
    return method.function(model, image, **options)


@cache
def run_both(name: str, kind: str) -> sl.Result:
    """The method on both images at once."""
    return run(name, kind, two_images())


@every_kind
def test_it_has_the_size_of_the_image(name: str, kind: str) -> None:
    attribution = run_both(name, kind).tensors["attribution"]
    assert attribution.shape == (2, HEIGHT, WIDTH)
    assert attribution.dtype == torch.float32
    assert attribution.isfinite().all()
    assert not attribution.requires_grad
    assert not torch.equal(attribution[0], attribution[1])


@every_kind
def test_it_is_signed_where_the_kind_is(name: str, kind: str) -> None:
    attribution = run_both(name, kind).tensors["attribution"]
    assert attribution.max() > 0
    if (name, kind) not in SIGNED:
        assert attribution.min() >= 0
    elif kind not in ("cam", "eigencam"):  # these are signed only where the channels are
        assert attribution.min() < 0


@pytest.mark.parametrize(("kind", "layer"), [("cam", "relu3"), ("eigencam", "conv1")])
def test_signed_activation_maps_keep_their_sign(kind: str, layer: str) -> None:
    attributions = [
        run("cam", kind, two_images(), label=label, layer=layer).tensors["attribution"]
        for label in LABELS
    ]
    assert torch.stack(attributions).min() < 0


@every_kind
def test_each_image_is_explained_as_if_alone(name: str, kind: str) -> None:
    together = run_both(name, kind).tensors["attribution"]
    for i in range(2):
        alone = run(name, kind, two_images()[i : i + 1]).tensors["attribution"]
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)


# ── which of a method's own numbers it is ──


@pytest.mark.parametrize("kind", METHODS["saliency"].parameters["kind"].choices)
def test_saliency_reduces_the_channels_as_its_picture_does(kind: str) -> None:
    tensors = run_both("saliency", kind).tensors
    per_channel = tensors["per_channel"]
    assert per_channel.shape == (2, 3, HEIGHT, WIDTH)
    red, green, blue = per_channel.unbind(1)
    if ("saliency", kind) in SIGNED:
        torch.testing.assert_close(tensors["attribution"], red + green + blue)
    else:
        largest = torch.maximum(torch.maximum(red.abs(), green.abs()), blue.abs())
        assert torch.equal(tensors["attribution"], largest)
    assert torch.equal(
        tensors["saliency"], torch.maximum(torch.maximum(red.abs(), green.abs()), blue.abs())
    )


@pytest.mark.parametrize(
    ("name", "key"),
    [("rise", "evidence"), ("gradcam", "map"), ("cam", "map"), ("attention", "map")],
)
def test_some_have_it_under_an_older_name_too(name: str, key: str) -> None:
    kind = next(kind for method_name, kind in list_kinds() if method_name == name)
    tensors = run_both(name, kind).tensors
    assert torch.equal(tensors["attribution"], tensors[key])


def test_segmentation_is_the_mask_as_numbers() -> None:
    tensors = run_both("segment", "saliency").tensors
    assert tensors["attribution"].unique().tolist() == [0, 1]
    assert torch.equal(tensors["attribution"] == 1, tensors["mask"])


def test_guided_has_the_largest_magnitude_over_the_channels() -> None:
    tensors = run_both("guided", "guided").tensors
    red, green, blue = tensors["gradient"].abs().unbind(1)
    largest = torch.maximum(torch.maximum(red, green), blue)
    assert torch.equal(tensors["attribution"], largest)


def test_several_neurons_have_no_single_attribution() -> None:
    assert "attribution" not in run("guided", "guided", two_images(), k=2).values


@pytest.mark.parametrize("name", ["occlusion", "rise"])
def test_a_list_of_labels_has_an_attribution_for_each(name: str) -> None:
    labels = ("cat", "top", 4)
    together = run(name, "", two_images(), label=labels).tensors["attribution"]
    assert together.shape == (2, 3, HEIGHT, WIDTH)
    for i, label in enumerate(labels):
        alone = run(name, "", two_images(), label=label).tensors["attribution"]
        torch.testing.assert_close(together[:, i], alone, rtol=1e-4, atol=1e-5)
    short = run(name, "", two_images(), label=["cat"]).tensors["attribution"]
    assert short.shape == (2, 1, HEIGHT, WIDTH)
