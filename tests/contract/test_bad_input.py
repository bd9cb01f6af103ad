"""What no analytical method can do is refused in one line; what is odd but possible is done."""

from typing import Any

import pytest
import torch
from helpers import LABELS, small_network, smooth
from torch import Tensor

import sightline as sl
from sightline.methods import load_methods
from sightline.registry.method import Method

METHODS = [
    method
    for method in load_methods().values()
    if method.chapter == "analytical" and method.subject == "image"
]
CONVOLUTIONAL = [method for method in METHODS if method.name != "attention"]
WITH_LABEL = [method for method in METHODS if "label" in method.parameters]
# Parameters that keep a run short.
SHORT: dict[str, dict[str, Any]] = {
    "saliency": {"samples": 3},
    "occlusion": {"window": 8, "stride": 8},
    "trust": {"steps": 4, "samples": 4, "stages": 2},
}
HEIGHT, WIDTH = 32, 40


@pytest.fixture
def image() -> Tensor:
    return smooth(side=WIDTH)[..., :HEIGHT, :]


def assert_refuses(
    method: Method, model: sl.Model, image: Tensor, *words: str, **parameters: Any
) -> None:
    """Expects a refusal in one line that contains all the words."""
    with pytest.raises(sl.SightlineError) as error:
        method.function(model, image, **{**SHORT.get(method.name, {}), **parameters})
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("method", WITH_LABEL, ids=lambda method: method.name)
@pytest.mark.parametrize("label", [5, -1, "cta"])
def test_a_label_out_of_range(
    method: Method, label: int | str, tiny: sl.Model, image: Tensor
) -> None:
    assert_refuses(method, tiny, image, str(label), label=label)


@pytest.mark.parametrize("layer", ["logits", "flatten", "penultimate"])
@pytest.mark.parametrize("name", ["activations", "cam", "gradcam"])
def test_a_layer_without_positions(name: str, layer: str, tiny: sl.Model, image: Tensor) -> None:
    method = load_methods()[name]
    if "layers" in method.parameters:
        assert_refuses(method, tiny, image, "positions", layers=(layer,))
    else:
        assert_refuses(method, tiny, image, "positions", layer=layer)


def test_no_layers_at_all(tiny: sl.Model, image: Tensor) -> None:
    assert_refuses(load_methods()["activations"], tiny, image, "layers is empty", layers=())


def test_guided_takes_a_layer_without_positions(tiny: sl.Model, image: Tensor) -> None:
    result = sl.guided(tiny, image, layer="logits", unit=2)
    assert result.captions
    assert all(panel.isfinite().all() for panel in result.panels.values())


def test_a_window_larger_than_the_image(tiny: sl.Model, image: Tensor) -> None:
    occlusion = load_methods()["occlusion"]
    words = (f"window is {HEIGHT + 1}", f"between 1 and {HEIGHT}")
    assert_refuses(occlusion, tiny, image, *words, window=HEIGHT + 1)


@pytest.mark.parametrize("method", CONVOLUTIONAL, ids=lambda method: method.name)
def test_an_image_of_one_color(method: Method, tiny: sl.Model) -> None:
    image = torch.full((1, 3, HEIGHT, WIDTH), 0.3)
    result = method.function(tiny, image, **SHORT.get(method.name, {}))
    assert all(panel.isfinite().all() for panel in result.panels.values())
    assert all(tensor.isfinite().all() for tensor in result.tensors.values())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_numbers(value: float) -> None:
    network = small_network()
    network.append(torch.nn.BatchNorm1d(len(LABELS)))
    with torch.no_grad():
        network.get_parameter("conv2.weight")[0] = value
        network.get_buffer("11.running_var")[2] = value
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
