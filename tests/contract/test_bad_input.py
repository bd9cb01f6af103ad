"""What no analytical method can answer is refused in one clear line; what is odd but answerable gets an answer."""

from typing import Any

import pytest
import torch
from helpers import LABELS, small_network, smooth

import sightline as sl
from sightline.methods import load_methods
from sightline.registry.method import Method

METHODS = [m for m in load_methods().values() if m.chapter == "analytical" and m.subject == "image"]
SHORT: dict[str, dict[str, Any]] = {
    "saliency": {"samples": 3},
    "occlusion": {"window": 8, "stride": 8},
    "trust": {"steps": 4, "samples": 4, "stages": 2},
}
CONVOLUTIONAL = [m for m in METHODS if m.name != "attention"]


def refused(method: Method, model: sl.Model, *told: str, **knobs: Any) -> None:
    with pytest.raises(sl.SightlineError) as error:
        method.function(model, smooth(), **{**SHORT.get(method.name, {}), **knobs})
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in told), str(error.value)


@pytest.mark.parametrize(
    "method", [m for m in METHODS if "label" in m.parameters], ids=lambda m: m.name
)
@pytest.mark.parametrize("label", [5, -1, "cta"])
def test_a_label_out_of_range(method: Method, label: int | str, tiny: sl.Model) -> None:
    refused(method, tiny, str(label), label=label)


@pytest.mark.parametrize("layer", ["logits", "flatten", "penultimate"])
@pytest.mark.parametrize("name", ["activations", "cam", "gradcam"])
def test_a_layer_without_places(name: str, layer: str, tiny: sl.Model) -> None:
    method = load_methods()[name]
    refused(
        method,
        tiny,
        "places",
        **({"layers": (layer,)} if "layers" in method.parameters else {"layer": layer}),
    )


def test_no_layers_at_all(tiny: sl.Model) -> None:
    refused(load_methods()["activations"], tiny, "layers is empty", layers=())


def test_guided_takes_a_layer_without_places(tiny: sl.Model) -> None:
    result = sl.guided(tiny, smooth(), layer="logits", unit=2)
    assert result.captions
    assert all(panel.isfinite().all() for panel in result.panels.values())


def test_a_window_larger_than_the_image(tiny: sl.Model) -> None:
    refused(load_methods()["occlusion"], tiny, "window is 33", "between 1 and 32", window=33)


@pytest.mark.parametrize("method", CONVOLUTIONAL, ids=lambda m: m.name)
def test_an_image_of_one_colour(method: Method, tiny: sl.Model) -> None:
    result = method.function(tiny, torch.full((1, 3, 32, 32), 0.3), **SHORT.get(method.name, {}))
    assert all(panel.isfinite().all() for panel in result.panels.values())
    assert all(tensor.isfinite().all() for tensor in result.tensors.values())


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_weights_that_are_not_numbers(wrong: float) -> None:
    network = small_network()
    network.append(torch.nn.BatchNorm1d(len(LABELS)))
    with torch.no_grad():
        network.get_parameter("conv2.weight")[0] = wrong
        network.get_buffer("11.running_var")[2] = wrong
    with pytest.raises(
        sl.SightlineError,
        match=r"^Sequential is refused: conv2.weight holds NaN or infinite weights, and 1 more$",
    ):
        sl.load(network, labels=LABELS, size=32)


def test_weights_whose_sum_is_too_large_are_numbers() -> None:
    network = small_network()
    with torch.no_grad():
        network.get_parameter("fc.bias")[:] = 3e38
    assert sl.load(network, labels=LABELS, size=32).labels == LABELS
