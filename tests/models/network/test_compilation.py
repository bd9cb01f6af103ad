"""Compiled functions run as they were written, in the thread of a run and while it lasts."""

from typing import Any

import pytest
import torch
from torch import Tensor
from zoo.odd_ways import CompiledMethod

import sightline as sl
from sightline.models.network.compilation import disable_compilation


class Counted:
    """A function and how often it was compiled."""

    def __init__(self) -> None:
        self.compilations = 0
        self.double: Any = torch.compile(lambda x: x * 2, backend=self.compile_graph)

    def compile_graph(self, graph: Any, _inputs: Any) -> Any:
        self.compilations += 1
        return graph.forward


def test_nothing_is_compiled_inside_and_everything_after_the_outermost() -> None:
    counted = Counted()
    x = torch.ones(3)
    with disable_compilation():
        with disable_compilation():
            assert counted.double(x).tolist() == [2, 2, 2]
        counted.double(x)
        assert counted.compilations == 0
    counted.double(x)
    assert counted.compilations == 1


def test_an_error_ends_it_too() -> None:
    counted = Counted()
    with pytest.raises(KeyError), disable_compilation():
        raise KeyError
    counted.double(torch.ones(3))
    assert counted.compilations == 1


def test_layers_inside_a_compiled_method_are_seen() -> None:
    torch.manual_seed(0)
    network = CompiledMethod().eval()
    model = sl.load(network, size=32)
    names = list(model.layers)
    assert names[0] == "backbone.conv1"
    assert {"backbone.relu2", "/gelu", "head"} <= set(names)
    assert model.landmarks["first"] == "backbone.conv1"
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    features: Tensor = model.features(images, "backbone.conv1")["backbone.conv1"]
    expected = network.backbone.conv1(model.normalize(images))
    torch.testing.assert_close(features, expected)
