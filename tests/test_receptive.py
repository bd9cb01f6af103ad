"""Receptive fields against the support of the gradient, against the recursion of the literature, and on whole families."""

import gc
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torchvision import models
from torchvision.ops import SqueezeExcitation

from sightline.errors import SightlineError
from sightline.model import Model
from sightline.receptive import ReceptiveField, receptive_field, receptive_fields
from sightline.zoo import load

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

# ── the oracle: where the gradient isn't zero, in a network whose every path adds ──


class SumPooling(TorchFunctionMode):
    """Max pooling passes the gradient of one tap only, so the oracle sums over the window instead."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func.__name__ not in ("max_pool2d", "max_pool2d_with_indices"):
            return func(*args, **(kwargs or {}))
        return self.pool(*args, **(kwargs or {}))

    @staticmethod
    def pool(x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
        if dilation in (1, (1, 1)):
            return F.avg_pool2d(x, kernel_size, stride, padding, ceil_mode)
        return F.conv2d(x, x.new_ones(x.shape[1], 1, *kernel_size), None, stride, padding, dilation, x.shape[1])


def adding(network: nn.Module) -> nn.Module:
    """Positive weights, so that no two paths cancel, of about the size that keeps the activations'."""
    generator = torch.Generator().manual_seed(0)
    network = network.double().eval()
    for name, value in network.named_parameters():
        if value.ndim > 1:
            value.data = (0.5 + torch.rand(value.shape, generator=generator, dtype=torch.float64)) / value[0].numel()
        else:
            value.data.fill_(1.0 if name.endswith("weight") else 0.0)
    return network


def outputs(network: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """Every module call's output, by the names of `Model.layers`."""
    found: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()

    def hook(path: str) -> Callable[..., None]:
        def record(_module, _args, output) -> None:
            found[path if not calls[path] else f"{path}:{calls[path]}"] = output
            calls[path] += 1

        return record

    handles = [module.register_forward_hook(hook(path)) for path, module in network.named_modules() if path]
    with SumPooling():
        network(image)
    for handle in handles:
        handle.remove()
    return found


def ends(used: Tensor) -> tuple[int, int]:
    """First and one after the last of the true positions."""
    at = used.nonzero().flatten().tolist()
    return (at[0], at[-1] + 1) if at else (0, 0)


def supports(images: Tensor, values: Tensor, units: list[tuple[int, int]]) -> list[tuple[int, int, int, int]]:
    """Box of the pixels with a gradient, of a unit in each image of a batch."""
    if not values.requires_grad:
        return [NONE for _ in units]
    weight = torch.linspace(1, 2, values.shape[1], dtype=values.dtype)  # a plain sum over channels is constant behind a layer norm
    total = sum(values[i, :, row, column] @ weight for i, (row, column) in enumerate(units))
    (gradient,) = torch.autograd.grad(total, images, retain_graph=True)
    found = []
    for used in gradient.ne(0).any(1):
        (top, bottom), (left, right) = ends(used.any(1)), ends(used.any(0))
        found.append((top, left, bottom, right) if top < bottom and left < right else NONE)
    return found


NONE = (0, 0, 0, 0)


def places(rows: int, columns: int) -> list[tuple[int, int]]:
    """Two corners, three on the border, the centre."""
    return [(0, 0), (rows - 1, columns - 1), (0, columns // 2), (rows // 2, 0), (rows // 3, columns - 1), (rows // 2, columns // 2)]


def assert_exact(network: nn.Module, height: int, width: int, layers: list[str] | None = None) -> dict[str, ReceptiveField]:
    """Every box equals the gradient's support; along an axis seen whole it holds it."""
    fields = receptive_fields(Model(network, size=32), height, width)
    images = torch.rand(len(places(1, 1)), 3, height, width, dtype=torch.float64).add(0.5).requires_grad_()
    values = outputs(adding(network), images)
    for name in layers or fields:
        field, units = fields[name], places(*values[name].shape[-2:])
        for (row, column), true in zip(units, supports(images, values[name], units), strict=True):
            box = field.box(row, column, height, width)
            box = box if box[0] < box[2] and box[1] < box[3] else NONE
            where = f"{name} ({row}, {column}): {box}, gradient {true}"
            for axis in (0, 1):
                given, needed = box[axis::2], true[axis::2]
                assert true == NONE or (given[0] <= needed[0] and needed[1] <= given[1]), where
                assert given == needed or not field.stride[axis], where
    return fields


# ── hand-made networks ──


class Lambda(nn.Module):
    """A function as a module, so that it is a layer."""

    def __init__(self, function: Callable[..., Tensor], **children: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def conv(size=3, stride=1, padding=0, dilation=1, channels=3, **options) -> nn.Conv2d:
    return nn.Conv2d(channels, 3, size, stride, padding, dilation, **options)


def block(function: Callable[..., Tensor], stem: nn.Module | None = None, **children: nn.Module) -> nn.Sequential:
    """stem, function, and one more convolution that shows what the function did to the geometry."""
    return nn.Sequential(stem or conv(3, 2, 1), Lambda(function, **children), Lambda(lambda _, x: x, last=nn.Identity()))


EXACT = {
    "strides": nn.Sequential(conv(7, 2, 3), nn.ReLU(), conv(3, 2), conv(5, 1, 2), conv(1, 2), conv()),
    "dilation": nn.Sequential(conv(3, 1, 2, 2), conv(3, 1, 1, 2), conv(3, 2, 5, 3), conv(3, 1, 1, 3)),
    "oblong": nn.Sequential(conv((1, 7), 1, (0, 3)), conv((5, 1), (2, 1)), conv((3, 2), (1, 3), (1, 0), (2, 1))),
    "same": nn.Sequential(conv(4, padding="same"), conv(3, padding="same", dilation=2), conv(2, padding="valid"), conv(4, padding="same")),
    "stride over kernel": nn.Sequential(conv(1, 3, 1), conv(3, 1, 1), conv(2, 4, 2), conv(3, 1, 1)),
    "max pooling": nn.Sequential(conv(3, 1, 1), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2), nn.MaxPool2d((2, 3), (1, 2), (1, 0), 2)),
    "ceil mode": nn.Sequential(nn.MaxPool2d(3, 2, ceil_mode=True), nn.AvgPool2d(2, ceil_mode=True), conv(3, 1, 1)),
    "padding modes": nn.Sequential(
        nn.ReflectionPad2d(7), conv(3), nn.ReplicationPad2d(5), conv(3, 2), nn.CircularPad2d(2), conv(), nn.ZeroPad2d((3, 0, -1, 2)), conv()
    ),
    "padded convolutions": nn.Sequential(*(conv(5, 2, 2, padding_mode=mode) for mode in ("reflect", "replicate", "circular"))),
    "batch norm and dropout": nn.Sequential(conv(), nn.BatchNorm2d(3), nn.Dropout(), nn.Dropout2d(), nn.SiLU(), nn.LocalResponseNorm(2), conv()),
    "identity pooling": nn.Sequential(conv(2, 2), nn.AdaptiveAvgPool2d((15, 13)), conv()),
    "regular adaptive pooling": nn.Sequential(conv(2, 2), nn.AdaptiveAvgPool2d((5, 13)), conv(3, 1, 1)),
    "one row": nn.Sequential(conv(3, 1, 1), nn.AdaptiveAvgPool2d((1, None)), conv(3, 1, 1)),
    "addition": block(lambda self, x: x + self.wide(x) * 2 - self.two(self.one(x)), wide=conv(5, 1, 2), one=conv(3, 1, 1), two=conv(1)),
    "projection": block(lambda self, x: self.two(self.one(x)).add_(self.skip(x)), one=conv(3, 2, 1), two=conv(3, 1, 1), skip=conv(1, 2)),
    "uneven branches": block(lambda self, x: self.left(x) + self.right(x), left=conv(4, 2, 1), right=conv(2, 2)),
    "concatenation": block(lambda self, x: torch.cat([x, self.one(x), F.max_pool2d(x, 3, 1, 1)], 1), one=conv(3, padding="same")),
    "stack": block(lambda self, x: torch.stack([x, self.one(x)], 2).sum(2), one=conv(3, 1, 1)),
    "twice": block(lambda self, x: self.relu(self.same(self.relu(self.same(x)))), same=conv(3, 1, 1), relu=nn.ReLU()),
    "functional": block(lambda self, x: F.relu(F.avg_pool2d(F.conv2d(x, self.w.weight, stride=2), 2, 1).mul(0.5), inplace=True), w=conv()),
    "keywords": block(lambda self, x: F.conv2d(input=x, weight=self.w.weight, padding=1).clamp(min=0), w=conv()),
    "slices": block(lambda self, x: self.one(x[:, :2, 1:-2, :12:2]) + x[:, None, 0, 2:-2, 1:10:2], one=conv(2, channels=2)),
    "merged patches": block(lambda self, x: torch.cat([x[..., i:14:2, j:12:2] for i in (0, 1) for j in (0, 1)], 1)),
    "split and narrow": block(lambda self, x: torch.cat([*x.chunk(3, 1)[1:], *x.split(1, 1), x.narrow(1, 0, 1), x[:, 1].unsqueeze(1)], 1)),
    "shuffled channels": block(lambda self, x: x.view(-1, 3, 1, *x.shape[-2:]).transpose(1, 2).reshape(x.shape)),
    "channel attention": block(lambda self, x: x * x.mean(1, keepdim=True).sigmoid() * x.max(1, keepdim=True)[0] * F.softmax(x, 1)),
    "turned": block(lambda self, x: F.linear(x.permute(0, 2, 3, 1), self.one.weight[:, :, 0, 0]).movedim(3, 1), one=conv(1)),
    "turned norm": block(lambda self, x: F.layer_norm(x.permute(0, 2, 3, 1), (3,), bias=torch.ones(3, dtype=x.dtype)).permute(0, 3, 1, 2)),
    "product": block(lambda self, x: (x.permute(0, 2, 3, 1) @ self.one.weight[0, :, :, 0].abs()).permute(0, 3, 1, 2), one=conv((3, 1))),
    "constants": block(lambda self, x: x * torch.arange(1, x.shape[-1] + 1) + torch.ones_like(x) * x.new_ones(1)),
    "two maxima": block(lambda self, x: torch.max(x, torch.zeros(1, dtype=x.dtype)) + x.min(torch.ones(1, dtype=x.dtype)) * 1e-3),
}


@pytest.mark.parametrize("name", EXACT)
def test_box_is_the_support_of_the_gradient(name: str) -> None:
    fields = assert_exact(EXACT[name], 31, 26)
    assert fields
    assert all(field.stride[0] and field.stride[1] for field in fields.values()) or name == "one row"


# ── random networks ──


class Random(nn.Module):
    """A chain of random steps in functional and modular style; a step that the size doesn't allow is left out, as the forward pass goes."""

    def __init__(self, steps: list[tuple]) -> None:
        super().__init__()
        self.plan = steps
        self.convs = nn.ModuleList(conv(tuple(step[1])) for step in steps)
        self.after = nn.ModuleList(nn.Identity() for _ in steps)
        self.shared = conv(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        for step, one, after in zip(self.plan, self.convs, self.after, strict=True):
            x = after(self.step(x, one, *step))
        return x

    def step(self, x: Tensor, one: nn.Module, kind: str, size, stride, padding, dilation) -> Tensor:
        rows, columns = (d * (k - 1) + 1 for k, d in zip(size, dilation, strict=True))
        if x.shape[-2] < max(rows + stride[0], 5) or x.shape[-1] < max(columns + stride[1], 5):
            return x
        if kind == "same":
            return F.conv2d(x, one.weight, None, 1, "same", dilation).relu_()
        if kind == "max":
            return F.max_pool2d(x, size, stride, [min(p, k // 2) for p, k in zip(padding, size, strict=True)], dilation)
        if kind == "average":
            return F.avg_pool2d(x, size, stride, [min(p, k // 2) for p, k in zip(padding, size, strict=True)], ceil_mode=True)
        if kind in ("reflect", "replicate", "circular", "constant"):
            return F.pad(x, (padding[1], dilation[1], dilation[0], padding[0]), mode=kind)
        if kind == "residual":
            return F.relu(self.shared(x), inplace=True) + x
        if kind == "cat":
            return torch.cat([x[:, 1:], self.shared(x)[:, :1], F.avg_pool2d(x, 3, 1, 1)[:, 1:2]], 1)[:, :3]
        if kind == "slice":
            return x[..., padding[0] :: stride[0], padding[1] :: stride[1]]
        return F.conv2d(x, one.weight, one.bias, stride, padding, dilation)


KINDS = ("conv", "conv", "same", "max", "average", "reflect", "replicate", "circular", "constant", "residual", "cat", "slice")
pairs = {name: st.tuples(st.integers(low, high), st.integers(low, high)) for name, low, high in (("size", 1, 4), ("stride", 1, 3), ("pad", 0, 3), ("gap", 1, 3))}
steps = st.tuples(st.sampled_from(KINDS), pairs["size"], pairs["stride"], pairs["pad"], pairs["gap"])


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(steps, min_size=2, max_size=6), st.integers(17, 40), st.integers(17, 40))
def test_box_is_exact_for_random_networks(plan: list[tuple], height: int, width: int) -> None:
    fields = assert_exact(Random(plan), height, width)
    assert not any(0 in field.stride for field in fields.values())


@given(st.lists(steps, min_size=1, max_size=4), st.integers(0, 3), st.integers(0, 3))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_windows_have_one_size_and_hold_the_boxes(plan: list[tuple], row: int, column: int) -> None:
    for field in receptive_fields(Model(Random([step for step in plan if step[0] not in ("reflect", "circular")]), size=32)).values():
        window, box = field.window(row, column), field.box(row, column, 40, 40)
        assert (window[2] - window[0], window[3] - window[1]) == field.size
        assert box == tuple(min(max(value, 0), 40) for value in window)
        assert field.window(row + 1, column)[0] - window[0] == field.stride[0]
        assert field.window(0, 0)[:2] == field.offset


# ── what mixes places ──

MIXING: dict[str, Callable[..., Tensor]] = {
    "global pooling": lambda self, x: x * x.mean((2, 3), keepdim=True),
    "global max": lambda self, x: x + x.amax(-1, keepdim=True).amax(-2, keepdim=True),
    "adaptive pooling": lambda self, x: F.adaptive_avg_pool2d(x, (5, 7)),
    "attention": lambda self, x: F.scaled_dot_product_attention(x, x, x) + x.mT @ x,
    "spatial softmax": lambda self, x: x.flatten(2).softmax(2).view_as(x),
    "tokens": lambda self, x: x.flatten(2).transpose(1, 2).transpose(1, 2).reshape(x.shape),
    "windows": lambda self, x: x.view(-1, 3, 4, 4, 4, 4).transpose(3, 4).reshape(x.shape),
    "interpolation": lambda self, x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "transposed convolution": lambda self, x: F.conv_transpose2d(x, self.one.weight, stride=2),
    "Fourier": lambda self, x: torch.fft.ifft2(torch.fft.fft2(x) * 2).real,
    "roll and flip": lambda self, x: x.roll(2, 2).flip(3),
    "group norm": lambda self, x: F.group_norm(x, 1),
    "instance norm": lambda self, x: F.instance_norm(x),
    "batch statistics": lambda self, x: F.batch_norm(x, None, None, training=True),
    "layer norm over places": lambda self, x: F.layer_norm(x, x.shape[1:]),
    "index tensors": lambda self, x: x[:, :, torch.arange(15, -1, -1)][..., [0, 3, 1, 2]],
    "turned picture": lambda self, x: x + x.mT,
    "different pace": lambda self, x: x[..., 0::2, 0::2] + x[..., :8, :8],
    "different pace in a cat": lambda self, x: torch.cat([x[..., 0::2, 0::2], x[..., :8, :8]], 1),
    "cat along places": lambda self, x: torch.cat([torch.cat([x, x], 2), torch.cat([x, x], 2)], 3),
    "filters from the image": lambda self, x: F.conv2d(self.one.weight, x[:, :, :2, :2]),
    "numpy": lambda self, x: torch.from_numpy(np.flip(x.detach().numpy(), 2).copy()),
    "scripted": lambda self, x: torch.jit.script(flipped)(x),
    "written through a view": lambda self, x: written(x),
    "written into a buffer": lambda self, x: buffered(x),
}


def flipped(x: Tensor) -> Tensor:
    return x.flip([2]) + 1


def written(x: Tensor) -> Tensor:
    view = x.view(-1, 3, 256)
    view += x.flip(2).flip(3).flatten(2)
    return x


def buffered(x: Tensor) -> Tensor:
    blank = torch.zeros_like(x)
    blank[:, :, :8], blank[:, :, 8:] = x[:, :, 8:], x[:, :, :8]
    return blank


@pytest.mark.parametrize("name", MIXING)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_what_mixes_places_sees_the_whole_image(name: str) -> None:
    fields = receptive_fields(Model(block(MIXING[name], one=conv()), size=32))
    assert not fields["0"].whole
    assert fields["2"] == ReceptiveField((32, 32), (0, 0), (0, 0), True, (32, 32), ((), ()))
    assert fields["2"].box(1, 3, 32, 32) == (0, 0, 32, 32) == fields["2"].window(1, 3)
