"""Any method's attribution in one form is that of the method itself, on a wide image."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import sightline as sl
from sightline.images.plotting.maps import upsample_maps
from sightline.methods.evaluation.attribution_method import (
    STABILITY_NOISE,
    AttributionMethod,
    find_attribution_method,
    list_attribution_methods,
)

LABEL = 3


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def list_expected(model: sl.Model, image: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Methods, and the heatmap they should give, from the methods themselves."""
    size = image.shape[-2:]
    yield "saliency", sl.saliency(model, image, label=LABEL).tensors["attribution"]
    for kind in ("integrated", "vargrad", "gradient_input"):
        attribution = sl.saliency(model, image, label=LABEL, kind=kind).tensors["attribution"]
        yield f"saliency:{kind}", attribution
    yield "gradcam", sl.gradcam(model, image, label=LABEL).tensors["attribution"]
    yield "cam:cam", sl.cam(model, image, label=LABEL, kind="cam").tensors["attribution"]
    drop = sl.occlusion(model, image, label=LABEL, stride=16).tensors["drop"]
    yield "occlusion", upsample_maps(drop, size)
    rise = sl.rise(model, image, label=LABEL, samples=150, cells=4)
    yield "rise", rise.tensors["attribution"]
    for rule in ("guided", "deconvnet"):
        guided = sl.guided(model, image, layer="logits", unit=LABEL, rule=rule)
        yield f"guided:{rule}", guided.tensors["attribution"]
    yield "segment", sl.segment(model, image, label=LABEL).tensors["map"]


def test_heatmaps_are_those_of_the_methods(tiny: sl.Model, wide_photo: Tensor) -> None:
    for name, expected in list_expected(tiny, wide_photo):
        method = find_attribution_method(name)
        attribution = method.compute_attribution(tiny, wide_photo, LABEL, seed=0)
        assert attribution.heatmap.shape == wide_photo.shape[-2:], name
        torch.testing.assert_close(attribution.heatmap, expected[0], msg=name)


@pytest.mark.parametrize(
    ("name", "channels", "is_gradient"),
    [
        ("saliency", 3, True),
        ("saliency:smoothgrad", 3, True),
        ("saliency:integrated", 3, False),
        ("guided", 3, True),
        ("gradcam", 1, False),
        ("occlusion", 1, False),
    ],
)
def test_what_is_summed_is_a_gradient_or_a_contribution(
    tiny: sl.Model, wide_photo: Tensor, name: str, channels: int, is_gradient: bool
) -> None:
    method = find_attribution_method(name)
    attribution = method.compute_attribution(tiny, wide_photo, LABEL, seed=0)
    assert attribution.per_channel.shape == (channels, *wide_photo.shape[-2:])
    assert attribution.is_gradient == is_gradient


def test_a_maximum_stays_where_it_is(
    tiny: sl.Model, wide_photo: Tensor, replace_gradcam: Callable[..., None]
) -> None:
    spot = torch.zeros(1, 32, 44)
    spot[0, 6, 39] = 2.0
    replace_gradcam(lambda _model, _image: spot)
    attribution = find_attribution_method("gradcam").compute_attribution(tiny, wide_photo, 0, 0)
    assert divmod(int(attribution.heatmap.argmax()), 44) == (6, 39)


def test_what_is_not_finite_becomes_zero(
    tiny: sl.Model, wide_photo: Tensor, replace_gradcam: Callable[..., None]
) -> None:
    maps = torch.ones(1, 32, 44)
    maps[0, 0, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    replace_gradcam(lambda _model, _image: maps)
    attribution = find_attribution_method("gradcam").compute_attribution(tiny, wide_photo, 0, 0)
    assert attribution.heatmap[0, :4].tolist() == [0, 0, 0, 1]


def test_repetition_is_of_another_seed_where_that_counts(
    tiny: sl.Model, wide_photo: Tensor
) -> None:
    method = find_attribution_method("saliency:smoothgrad")
    original = method.compute_attribution(tiny, wide_photo, LABEL, seed=4).heatmap
    repeated, variation = method.repeat_attribution(tiny, wide_photo, LABEL, original, 4, seeded())
    expected = sl.saliency(tiny, wide_photo, label=LABEL, kind="smoothgrad", seed=5)
    assert variation == "seed"
    torch.testing.assert_close(repeated, expected.tensors["attribution"][0])


def test_repetition_is_of_a_noisy_image_otherwise(tiny: sl.Model, wide_photo: Tensor) -> None:
    method = find_attribution_method("saliency")  # takes a seed, which the gradient ignores
    original = method.compute_attribution(tiny, wide_photo, LABEL, seed=0).heatmap
    repeated, variation = method.repeat_attribution(tiny, wide_photo, LABEL, original, 0, seeded(7))
    noise = STABILITY_NOISE * torch.randn(wide_photo.shape, generator=seeded(7))
    noisy = (wide_photo + noise).clamp(0, 1)
    assert variation == "noise"
    expected = sl.saliency(tiny, noisy, label=LABEL).tensors["attribution"][0]
    torch.testing.assert_close(repeated, expected)


def test_parameters_are_the_methods_then_the_specs_then_class_kind_and_seed() -> None:
    method = find_attribution_method("cam", "scorecam", {"channels": 5, "layer": "conv2"})
    assert method.collect_parameters(7, seed=3) == {
        "channels": 32,
        "layer": "conv2",
        "label": 7,
        "kind": "scorecam",
    }
    rise = find_attribution_method("rise").collect_parameters(7, seed=3)
    assert rise == {"samples": 150, "cells": 4, "label": 7, "seed": 3}
    guided = find_attribution_method("guided").collect_parameters(7, seed=3)
    assert guided == {"layer": "logits", "k": 1, "unit": 7, "rule": "guided"}


@pytest.mark.parametrize(
    ("name", "description", "is_random", "is_costly"),
    [
        ("saliency", "saliency (gradient)", True, False),
        ("saliency:vargrad", "saliency (vargrad)", True, True),
        ("cam:scorecam", "cam (scorecam)", False, True),
        ("cam", "cam (gradcam)", False, False),
        ("guided:deconvnet", "deconvnet backpropagation", False, False),
        ("gradcam", "gradcam", False, False),
        ("occlusion", "occlusion", False, True),
    ],
)
def test_a_method_says_what_it_is(
    name: str, description: str, is_random: bool, is_costly: bool
) -> None:
    method = find_attribution_method(name)
    assert method.description == description
    assert method.is_random == is_random
    assert method.is_costly == is_costly


def test_the_methods_are_those_with_an_attribution() -> None:
    assert list_attribution_methods() == [
        "saliency",
        "occlusion",
        "rise",
        "gradcam",
        "cam",
        "attention",
        "segment",
        "guided",
    ]


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("gradcamm", None, "no attribution method named 'gradcamm'; did you mean gradcam?"),
        ("predictions", None, "no attribution method named 'predictions'; choose from saliency"),
        ("gradcam", "cam", "kind is 'cam'; gradcam has no kinds"),
        ("gradcam:cam", None, "kind is 'cam'; gradcam has no kinds"),
        ("saliency:integratd", None, "no kind named 'integratd'; did you mean integrated?"),
    ],
)
def test_what_it_does_not_know_is_refused(name: str, kind: str | None, message: str) -> None:
    with pytest.raises(sl.SightlineError) as error:
        find_attribution_method(name, kind)
    assert message in str(error.value)


def test_a_method_without_an_attribution_has_no_spec() -> None:
    with pytest.raises(sl.SightlineError, match="no attribution method named 'predictions'"):
        _ = AttributionMethod("predictions", "").spec
