"""Whatever a network raises becomes one line that names the cause and the first thing to try."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sightline.errors import SightlineError
from sightline.models.model import Model
from sightline.models.network.guard import (
    list_nearby_sizes,
    list_sizes_in_text,
    may_concern_shape,
)

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
            "it takes 1 channel: .* of one value",
        ),
        (lambda net, x: net.c(x), {"c": nn.Conv2d(6, 2, 3)}, "it takes 6 channels: .* 6 values"),
        (
            lambda net, x: net.c(x),
            {"c": nn.Conv3d(3, 2, 3)},
            "it takes video or volumes N×C×T×H×W. Explain it slice by slice: preprocess= can make",
        ),
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


# ── hints of another size ──


class Wide(nn.Module):
    """A network for images of 32×64 alone; `check` may refuse others in its own words."""

    def __init__(self, check: Callable[[Tensor], object] | None = None) -> None:
        super().__init__()
        self.check = check
        self.conv = nn.Conv2d(3, 4, 3, stride=4, padding=1)
        self.head = nn.Linear(4 * 8 * 16, 5)

    def forward(self, image: Tensor) -> Tensor:
        if self.check is not None:
            self.check(image)
        return self.head(self.conv(image).flatten(1))


def check_by_assertion(image: Tensor) -> None:
    assert image.shape[-2:] == (32, 64), f"expected (32, 64), got {tuple(image.shape[-2:])}"


def check_by_width(image: Tensor) -> None:
    if image.shape[-1] != 64:
        raise ValueError(f"width must be 64, not {image.shape[-1]}")


class Table(nn.Module):
    """Positions of a grid of 8×16 are added to the map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, stride=4)
        self.positions = nn.Parameter(torch.zeros(1, 4, 8, 16))
        self.head = nn.Linear(4, 5)

    def forward(self, image: Tensor) -> Tensor:
        return self.head((self.conv(image) + self.positions).mean((2, 3)))


@pytest.mark.parametrize(
    "network",
    [Wide(), Wide(check_by_assertion), Wide(check_by_width), Table()],
    ids=["matrices", "assertion", "width", "positions"],
)
@pytest.mark.parametrize("size", [32, (64, 64), (32, 48)], ids=str)
def test_the_size_that_a_network_needs_is_named(
    network: nn.Module, size: int | tuple[int, int]
) -> None:
    model = Model(network, size=size)
    with pytest.raises(SightlineError, match=r"It takes \d+×\d+: sl\.load\(") as caught:
        model.logits(model.blank())
    message = str(caught.value)
    assert "\n" not in message
    named = re.search(r"size=\((\d+), (\d+)\)", message)
    assert named is not None
    named_size = (int(named[1]), int(named[2]))
    blank = torch.rand(1, 3, *named_size)
    assert Model(network, size=named_size).logits(blank).shape == (1, 5)
    if size == 32:
        assert named_size == (32, 64)


def test_sizes_in_the_text_of_an_error() -> None:
    matrices = "mat1 and mat2 shapes cannot be multiplied (1x256 and 512x5)"
    assert (32, 64) in list_sizes_in_text(matrices, 32, 32)
    assert (64, 32) in list_sizes_in_text(matrices, 32, 32)
    assert (48, 80) in list_sizes_in_text("input (30*45) is not (48*80)", 30, 45)
    tensors = "The size of tensor a (8) must match the size of tensor b (16) at dimension 3"
    assert (32, 64) in list_sizes_in_text(tensors, 32, 32)
    assert list_sizes_in_text("0.5 of 99999999 things", 8, 8) == []


# ── errors of the network's own ──


class Grumpy(nn.Module):
    """Raises an error at a place of its own, whatever the size of the image."""

    def __init__(self, error: Exception, place: str) -> None:
        super().__init__()
        self.error, self.place = error, place
        self.conv = nn.Conv2d(3, 4, 3)
        if place == "hook":
            self.conv.register_forward_hook(self.complain)
        if place == "hook before":
            self.conv.register_forward_pre_hook(self.complain)

    def complain(self, *_arguments: Any) -> None:
        raise self.error

    def pool(self, features: Tensor) -> Tensor:
        if self.place == "method":
            self.complain()
        return features.mean((2, 3))

    def forward(self, image: Tensor) -> Tensor:
        if self.place == "forward":
            self.complain()
        return self.pool(self.conv(image))


class Subclass(Grumpy):
    """A method of the class above is overridden."""

    def pool(self, features: Tensor) -> Tensor:
        if float(features.sum()) < 1e9:
            raise self.error
        return super().pool(features)


OWN_ERRORS = [
    ValueError("the license has expired"),
    RuntimeError("call fit() first"),
    AssertionError(),
    KeyError("age"),
    AttributeError("'NoneType' object has no attribute 'forward'"),
    FileNotFoundError(2, "No such file or directory", "table.csv"),
    NotImplementedError("subclasses define this"),
]


@pytest.mark.parametrize("error", OWN_ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("place", ["forward", "method", "hook", "hook before", "overridden"])
@pytest.mark.parametrize("size", [(20, 28), (12, 16)], ids=str)
def test_an_error_of_its_own_has_no_hint_of_a_size(
    error: Exception, place: str, size: tuple[int, int]
) -> None:
    network = Subclass(error, place) if place == "overridden" else Grumpy(error, place)
    model = Model(network, size=size)
    with pytest.raises(SightlineError) as caught:
        model.logits(IMAGE)
    message = str(caught.value)
    assert "\n" not in message
    assert "made for" not in message
    assert "size=" not in message
    assert "mean=" not in message
    assert re.search("fails on an image of (20×28|12×16) pixels", message)
    assert "at test_guard.py:" in message


def test_an_error_that_comes_and_goes_names_no_size() -> None:
    """The text is one of shapes, but the same size is taken at the next call."""

    class Moody(nn.Module):
        calls = 0

        def forward(self, image: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == 1:
                raise RuntimeError("shapes of the cache differ")
            return image.mean((2, 3))

    model = Model(Moody(), size=(12, 16))
    with pytest.raises(SightlineError, match="a gray image of this size is taken: the error is"):
        model.run_network(IMAGE)


def test_volume_networks_may_fail_otherwise() -> None:
    def refuse(_net: Any, _x: Tensor) -> Any:
        raise ValueError("the license has expired")

    model = Model(Failing(refuse, c=nn.Conv3d(3, 2, 3)), size=(20, 28))
    with pytest.raises(SightlineError, match="the error is its own") as caught:
        model.logits(IMAGE)
    assert "volumes" not in str(caught.value)


def test_what_may_concern_a_shape() -> None:
    for text in ("size mismatch", "must be divisible by 4", "expected 3x4", "too small"):
        assert may_concern_shape(ValueError(text))
    for error in (KeyError("size"), ValueError("expired"), OSError("no dimension")):
        assert not may_concern_shape(error)
    with pytest.raises(RuntimeError) as caught:
        nn.functional.conv2d(torch.zeros(2, 2), torch.zeros(1, 1, 1, 1))
    assert may_concern_shape(caught.value)


# ── volumes ──


class Clip(nn.Module):
    """A small network for video, which begins in one way or another."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = first
        self.conv = nn.LazyConv3d(4, 3, padding=1)
        self.head = nn.LazyLinear(5)
        self.eval()
        self(torch.rand(2, 3, 6, 20, 28))

    def forward(self, clip: Tensor) -> Tensor:
        return self.head(self.conv(self.first(clip)).mean((2, 3, 4)))


class Unpacking(nn.Conv3d):
    """A convolution that reads the five sides first."""

    def forward(self, input: Tensor) -> Tensor:
        _, _, _, _, _ = input.shape
        return super().forward(input)


@pytest.mark.parametrize(
    "first",
    [
        nn.Conv3d(3, 4, (3, 7, 7), padding=(1, 3, 3)),
        nn.Conv3d(3, 4, (1, 3, 3), bias=False),
        nn.BatchNorm3d(3),
        nn.MaxPool3d((1, 2, 2)),
        Unpacking(3, 4, 3),
    ],
    ids=lambda module: type(module).__name__,
)
def test_networks_for_volumes_say_what_to_do(first: nn.Module) -> None:
    network = Clip(first)
    model = Model(network, size=(20, 28))
    with pytest.raises(SightlineError, match=r"video or volumes N×C×T×H×W\. Explain it") as caught:
        model.logits(IMAGE)
    assert "\n" not in str(caught.value)
    with pytest.raises(SightlineError, match="a video or volume: give one of its slices"):
        model.logits(torch.rand(1, 3, 6, 20, 28))

    def repeat_slice(image: Tensor) -> Tensor:
        return image.unsqueeze(2).expand(-1, -1, 16, -1, -1)

    shown = Model(network, size=(20, 28), preprocess=repeat_slice)
    image = IMAGE.clone().requires_grad_()
    expected = network(repeat_slice(image))
    assert torch.allclose(shown.logits(IMAGE), expected, atol=1e-5)


def test_a_wrong_volume_is_no_lack_of_slices() -> None:
    network = Clip(nn.Conv3d(3, 4, 3, padding=1))
    model = Model(network, size=(20, 28), preprocess=lambda image: image.unsqueeze(2)[:, :2])
    with pytest.raises(SightlineError, match="2 channels") as caught:
        model.logits(IMAGE)
    assert "slice by slice" not in str(caught.value)


class TakesBatch(nn.Module):
    """Reads the image out of a batch of its own kind."""

    def __init__(self, read: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.read = read

    def forward(self, batch: Any) -> Tensor:
        return self.read(batch).mean((2, 3))


def take_first(batch: Any) -> Tensor:
    image, _label, _mask = batch
    return image


@pytest.mark.parametrize(
    "read", [take_first, lambda batch: batch.image, lambda batch: batch["image"]]
)
def test_a_network_that_takes_a_batch_of_its_own_kind(read: Callable[[Any], Tensor]) -> None:
    with pytest.raises(SightlineError, match="if it takes a dict or a list, preprocess= can"):
        Model(TakesBatch(read), size=(12, 16)).logits(IMAGE)


def test_a_network_that_takes_whole_numbers() -> None:
    class Strict(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            assert image.dtype == torch.uint8, f"expected uint8, got {image.dtype}"
            return image.float().mean((2, 3))

    with pytest.raises(SightlineError, match=r"preprocess='0\.\.255 uint8'"):
        Model(Strict(), size=(12, 16)).logits(IMAGE)
    model = Model(Strict(), size=(12, 16), mean=(0,) * 3, std=(1,) * 3, preprocess="0..255 uint8")
    assert model.logits(IMAGE).shape == (len(IMAGE), 3)
