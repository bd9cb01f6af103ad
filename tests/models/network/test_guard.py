"""Whatever a network raises becomes one line that names the cause and the first thing to try."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sightline.errors import SightlineError
from sightline.models.model import Model
from sightline.models.network.guard import list_nearby_sizes

IMAGE = torch.rand(1, 3, 20, 28, generator=torch.Generator().manual_seed(1))


class Failing(nn.Module):
    """Runs a function of the module and the image."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, image: Tensor) -> Any:
        return self.function(self, image)


def raise_error(error: Exception) -> Any:
    raise error


class FancyError(Exception):
    """An error of some library."""


@pytest.mark.parametrize(
    ("function", "modules", "message"),
    [
        (lambda _net, _x: {}["size"], {}, r"KeyError: 'size'\), at test_guard.py:\d+ in <lambda>"),
        (lambda net, x: net.missing(x), {}, "AttributeError: 'Failing' object has no attribute"),
        (lambda _net, x: list(x)[3], {}, "IndexError: list index out of range"),
        (lambda _net, x: x["image"], {}, "if it takes a dict or a list, preprocess= can make it"),
        (
            lambda _net, _x: raise_error(FancyError("no key\nsecond line")),
            {},
            r"FancyError: no key\)",
        ),
        (lambda _net, _x: 1 / 0, {}, "ZeroDivisionError"),
        (lambda _net, _x: raise_error(NotImplementedError()), {}, "NotImplementedError"),
        (
            lambda net, x: net.c(x),
            {"c": nn.Conv2d(1, 2, 3)},
            "it takes 1 channels: .* of one value",
        ),
        (lambda net, x: net.c(x), {"c": nn.Conv2d(6, 2, 3)}, "it takes 6 channels: .* 6 values"),
        (lambda net, x: net.c(x), {"c": nn.Conv3d(3, 2, 3)}, "it takes video or volumes"),
        (
            lambda net, x: net.f(x.flatten(1)),
            {"f": nn.Linear(12, 2)},
            "is it made for another size",
        ),
        (
            lambda net, x: net.d(net.c(x)),
            {"c": nn.Conv2d(3, 2, 3), "d": nn.Conv2d(2, 2, 3).double()},
            r"its layers differ in precision; convert the whole network: network.float\(\)",
        ),
        (lambda _net, _x: None, {}, "returns NoneType, not N×classes; pick its logits"),
        (lambda _net, _x: "cat", {}, "returns str, not N×classes"),
    ],
)
def test_one_line(
    function: Callable[[Any, Tensor], Any], modules: dict[str, nn.Module], message: str
) -> None:
    model = Model(Failing(function, **modules), size=(20, 28))
    with pytest.raises(SightlineError, match=message) as caught:
        model.logits(IMAGE)
    assert "\n" not in str(caught.value)


def test_the_lack_of_memory_is_no_fault_of_the_network() -> None:
    def run_out(_net: Any, _x: Tensor) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = Model(Failing(run_out), size=(20, 28))
    with pytest.raises(torch.OutOfMemoryError):
        model.run_network(IMAGE)


def test_nan_names_its_first_layer() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 4, 3)
            self.second = nn.Hardtanh(1, 2)
            self.third = nn.Linear(4, 3)

        def forward(self, image: Tensor) -> Tensor:
            features = self.first(image).mean((2, 3))
            return self.third(self.second(features.mul(0).log().mul(0)))

    model = Model(Broken(), size=(20, 28))
    with pytest.raises(SightlineError, match=r"gives NaN for this image \(the first .* second\)"):
        model.logits(IMAGE)
    model.allows_nan = True
    assert model.logits(IMAGE).isnan().all()


def test_sizes_near_an_image() -> None:
    sizes = list_nearby_sizes(30, 45)
    assert (30, 45) not in sizes
    assert sizes[0] in {(30, 46), (30, 44)}
    assert (32, 48) in sizes or (32, 32) in sizes or (28, 42) in sizes
