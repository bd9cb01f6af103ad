"""Landmarks that are guessed from the structure."""

from collections.abc import Sequence

import pytest
from torch import nn

from sightline.models.layers.capture import Layer
from sightline.models.layers.landmarks import guess_landmarks

CONV = nn.Conv2d(3, 4, 3)
RELU = nn.ReLU()
POOL = nn.MaxPool2d(2)
LINEAR = nn.Linear(4, 5)
NORM = nn.LayerNorm(4)

Call = tuple[str, nn.Module, tuple[int, ...]]


def guess(calls: Sequence[Call]) -> dict[str, str]:
    layers = [Layer(name, type(module).__name__, shape) for name, module, shape in calls]
    return guess_landmarks(layers, [module for _, module, _ in calls])


def make_convolutional(convolutions: int) -> list[Call]:
    """conv0, relu0, conv1, relu1, …, pool, gap, fc."""
    calls: list[Call] = []
    for i in range(convolutions):
        calls += [(f"conv{i}", CONV, (4, 8, 9)), (f"relu{i}", RELU, (4, 8, 9))]
    return [*calls, ("pool", POOL, (4, 4, 4)), ("gap", POOL, (4, 1, 1)), ("fc", LINEAR, (5,))]


@pytest.mark.parametrize(("convolutions", "middle"), [(3, "relu1"), (4, "relu2"), (5, "relu2")])
def test_a_convolutional_network(convolutions: int, middle: str) -> None:
    assert guess(make_convolutional(convolutions)) == {
        "logits": "logits",
        "first": "conv0",
        "middle": middle,
        "last_conv": f"relu{convolutions - 1}",
        "penultimate": "fc:in",
    }


@pytest.mark.parametrize(("convolutions", "middle"), [(2, "norm3"), (3, "relu")])
def test_three_convolutions_are_enough_to_have_a_middle(convolutions: int, middle: str) -> None:
    """With fewer it is the middle one of all feature maps."""
    calls: list[Call] = [(f"conv{i}", CONV, (4, 8, 9)) for i in range(convolutions)]
    calls.append(("relu", RELU, (4, 8, 9)))
    calls += [(f"norm{i}", NORM, (4, 8, 9)) for i in range(10)]
    assert guess(calls)["middle"] == middle


def test_without_a_relu_the_middle_is_the_convolution() -> None:
    calls: list[Call] = [(f"conv{i}", CONV, (4, 8, 9)) for i in range(5)]
    assert guess(calls) == {
        "logits": "logits",
        "first": "conv0",
        "middle": "conv2",
        "last_conv": "conv4",
    }


def test_a_relu_of_a_vector_is_no_middle() -> None:
    convolutions: list[Call] = [(f"conv{i}", CONV, (4, 8, 9)) for i in range(3)]
    calls: list[Call] = [*convolutions, ("relu", RELU, (4,)), ("fc", LINEAR, (5,))]
    assert guess(calls)["middle"] == "conv1"


@pytest.mark.parametrize("norm", ["norm1", "ln_1", "layernorm_before"])
def test_a_transformer(norm: str) -> None:
    calls: list[Call] = [("patches", CONV, (4, 6, 9))]
    for i in range(4):
        calls += [(f"{i}.{norm}", NORM, (54, 4)), (f"{i}.mlp", LINEAR, (54, 4))]
    calls += [("norm", NORM, (54, 4)), ("head", LINEAR, (5,))]
    assert guess(calls) == {
        "logits": "logits",
        "first": "patches",
        "middle": f"2.{norm}",  # of patches and nine layers of tokens
        "last_conv": f"3.{norm}",
        "penultimate": "head:in",
    }


def test_tokens_without_a_known_norm() -> None:
    calls: list[Call] = [("patches", CONV, (4, 6, 9)), ("mix", LINEAR, (54, 4))]
    assert guess(calls)["last_conv"] == "mix"
    calls.append(("pooled", LINEAR, (1, 4)))
    assert guess(calls)["last_conv"] == "patches"


def test_a_network_without_structure() -> None:
    assert guess([]) == {"logits": "logits"}
    assert guess([("fc", LINEAR, (5,))]) == {"logits": "logits", "penultimate": "fc:in"}
    assert guess([("conv", CONV, (4, 1, 1))]) == {
        "logits": "logits",
        "first": "conv",
        "middle": "conv",
    }
