"""Receptive fields against the support of the gradient, against the recursion of the literature,
and on whole families.
"""

import gc
import weakref
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from helpers import load_without_weights
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torchvision import models
from torchvision.ops import SqueezeExcitation

from sightline.errors import SightlineError
from sightline.models.model import Model
from sightline.models.tracing.receptive_field import (
    ReceptiveField,
    receptive_field,
    receptive_fields,
)

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

# ── the oracle: where the gradient isn't zero, in a network whose every path adds ──


class SumPooling(TorchFunctionMode):
    """Max pooling passes the gradient of one tap only: the oracle sums over the window instead."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func.__name__ not in ("max_pool2d", "max_pool2d_with_indices"):
            return func(*args, **(kwargs or {}))
        return self.pool(*args, **(kwargs or {}))

    @staticmethod
    def pool(  # noqa: PLR0917 - torch's own order
        x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
    ):
        if dilation in (1, (1, 1)):
            return F.avg_pool2d(x, kernel_size, stride, padding, ceil_mode)
        return F.conv2d(
            x, x.new_ones(x.shape[1], 1, *kernel_size), None, stride, padding, dilation, x.shape[1]
        )


def adding(network: nn.Module) -> nn.Module:
    """Positive weights, so that no two paths cancel, of a size that keeps the activations'."""
    generator = torch.Generator().manual_seed(0)
    network = network.double().eval()
    for name, value in network.named_parameters():
        if value.ndim > 1:
            value.data = (
                0.5 + torch.rand(value.shape, generator=generator, dtype=torch.float64)
            ) / value[0].numel()
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

    handles = [
        module.register_forward_hook(hook(path)) for path, module in network.named_modules() if path
    ]
    with SumPooling():
        network(image)
    for handle in handles:
        handle.remove()
    return found


def ends(used: Tensor) -> tuple[int, int]:
    """First and one after the last of the true positions."""
    at = used.nonzero().flatten().tolist()
    return (at[0], at[-1] + 1) if at else (0, 0)


def supports(
    images: Tensor, values: Tensor, units: list[tuple[int, int]]
) -> list[tuple[int, int, int, int]]:
    """Box of the pixels with a gradient, of a unit in each image of a batch."""
    if not values.requires_grad:
        return [NONE for _ in units]
    weight = torch.linspace(
        1, 2, values.shape[1], dtype=values.dtype
    )  # a plain sum over channels is constant behind a layer norm
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
    return [
        (0, 0),
        (rows - 1, columns - 1),
        (0, columns // 2),
        (rows // 2, 0),
        (rows // 3, columns - 1),
        (rows // 2, columns // 2),
    ]


def assert_exact(
    network: nn.Module, height: int, width: int, layers: list[str] | None = None
) -> dict[str, ReceptiveField]:
    """Every box equals the gradient's support; along an axis seen whole it holds it."""
    fields = receptive_fields(Model(network, size=32), height, width)
    images = (
        torch.rand(len(places(1, 1)), 3, height, width, dtype=torch.float64)
        .add(0.5)
        .requires_grad_()
    )
    values = outputs(adding(network), images)
    # Hooks see no functional steps; theirs have a test of their own.
    for name in layers or [name for name in fields if name in values]:
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


def block(
    function: Callable[..., Tensor], stem: nn.Module | None = None, **children: nn.Module
) -> nn.Sequential:
    """stem, function, and one more convolution that shows what the function did to the geometry."""
    return nn.Sequential(
        stem or conv(3, 2, 1),
        Lambda(function, **children),
        Lambda(lambda _, x: x, last=nn.Identity()),
    )


EXACT = {
    "strides": nn.Sequential(
        conv(7, 2, 3), nn.ReLU(), conv(3, 2), conv(5, 1, 2), conv(1, 2), conv()
    ),
    "dilation": nn.Sequential(
        conv(3, 1, 2, 2), conv(3, 1, 1, 2), conv(3, 2, 5, 3), conv(3, 1, 1, 3)
    ),
    "oblong": nn.Sequential(
        conv((1, 7), 1, (0, 3)), conv((5, 1), (2, 1)), conv((3, 2), (1, 3), (1, 0), (2, 1))
    ),
    "same": nn.Sequential(
        conv(4, padding="same"),
        conv(3, padding="same", dilation=2),
        conv(2, padding="valid"),
        conv(4, padding="same"),
    ),
    "stride over kernel": nn.Sequential(conv(1, 3, 1), conv(3, 1, 1), conv(2, 4, 2), conv(3, 1, 1)),
    "max pooling": nn.Sequential(
        conv(3, 1, 1),
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d(2),
        nn.MaxPool2d((2, 3), (1, 2), (1, 0), 2),
    ),
    "ceil mode": nn.Sequential(
        nn.MaxPool2d(3, 2, ceil_mode=True), nn.AvgPool2d(2, ceil_mode=True), conv(3, 1, 1)
    ),
    "padding modes": nn.Sequential(
        nn.ReflectionPad2d(7),
        conv(3),
        nn.ReplicationPad2d(5),
        conv(3, 2),
        nn.CircularPad2d(2),
        conv(),
        nn.ZeroPad2d((3, 0, -1, 2)),
        conv(),
    ),
    "padded convolutions": nn.Sequential(
        *(conv(5, 2, 2, padding_mode=mode) for mode in ("reflect", "replicate", "circular"))
    ),
    "batch norm and dropout": nn.Sequential(
        conv(),
        nn.BatchNorm2d(3),
        nn.Dropout(),
        nn.Dropout2d(),
        nn.SiLU(),
        nn.LocalResponseNorm(2),
        conv(),
    ),
    "identity pooling": nn.Sequential(conv(2, 2), nn.AdaptiveAvgPool2d((15, 13)), conv()),
    "regular adaptive pooling": nn.Sequential(
        conv(2, 2), nn.AdaptiveAvgPool2d((5, 13)), conv(3, 1, 1)
    ),
    "one row": nn.Sequential(conv(3, 1, 1), nn.AdaptiveAvgPool2d((1, None)), conv(3, 1, 1)),
    "addition": block(
        lambda self, x: x + self.wide(x) * 2 - self.two(self.one(x)),
        wide=conv(5, 1, 2),
        one=conv(3, 1, 1),
        two=conv(1),
    ),
    "projection": block(
        lambda self, x: self.two(self.one(x)).add_(self.skip(x)),
        one=conv(3, 2, 1),
        two=conv(3, 1, 1),
        skip=conv(1, 2),
    ),
    "uneven branches": block(
        lambda self, x: self.left(x) + self.right(x), left=conv(4, 2, 1), right=conv(2, 2)
    ),
    "concatenation": block(
        lambda self, x: torch.cat([x, self.one(x), F.max_pool2d(x, 3, 1, 1)], 1),
        one=conv(3, padding="same"),
    ),
    "stack": block(lambda self, x: torch.stack([x, self.one(x)], 2).sum(2), one=conv(3, 1, 1)),
    "twice": block(
        lambda self, x: self.relu(self.same(self.relu(self.same(x)))),
        same=conv(3, 1, 1),
        relu=nn.ReLU(),
    ),
    "functional": block(
        lambda self, x: F.relu(
            F.avg_pool2d(F.conv2d(x, self.w.weight, stride=2), 2, 1).mul(0.5), inplace=True
        ),
        w=conv(),
    ),
    "keywords": block(
        lambda self, x: F.conv2d(input=x, weight=self.w.weight, padding=1).clamp(min=0), w=conv()
    ),
    "slices": block(
        lambda self, x: self.one(x[:, :2, 1:-2, :12:2]) + x[:, None, 0, 2:-2, 1:10:2],
        one=conv(2, channels=2),
    ),
    "merged patches": block(
        lambda self, x: torch.cat([x[..., i:14:2, j:12:2] for i in (0, 1) for j in (0, 1)], 1)
    ),
    "split and narrow": block(
        lambda self, x: torch.cat(
            [*x.chunk(3, 1)[1:], *x.split(1, 1), x.narrow(1, 0, 1), x[:, 1].unsqueeze(1)], 1
        )
    ),
    "shuffled channels": block(
        lambda self, x: x.view(-1, 3, 1, *x.shape[-2:]).transpose(1, 2).reshape(x.shape)
    ),
    "channel attention": block(
        lambda self, x: (
            x * x.mean(1, keepdim=True).sigmoid() * x.max(1, keepdim=True)[0] * F.softmax(x, 1)
        )
    ),
    "turned": block(
        lambda self, x: F.linear(x.permute(0, 2, 3, 1), self.one.weight[:, :, 0, 0]).movedim(3, 1),
        one=conv(1),
    ),
    "turned norm": block(
        lambda self, x: F.layer_norm(
            x.permute(0, 2, 3, 1), (3,), bias=torch.ones(3, dtype=x.dtype)
        ).permute(0, 3, 1, 2)
    ),
    "product": block(
        lambda self, x: (x.permute(0, 2, 3, 1) @ self.one.weight[0, :, :, 0].abs()).permute(
            0, 3, 1, 2
        ),
        one=conv((3, 1)),
    ),
    "constants": block(
        lambda self, x: x * torch.arange(1, x.shape[-1] + 1) + torch.ones_like(x) * x.new_ones(1)
    ),
    "two maxima": block(
        lambda self, x: (
            torch.max(x, torch.zeros(1, dtype=x.dtype)) + x.min(torch.ones(1, dtype=x.dtype)) * 1e-3
        )
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_box_is_the_support_of_the_gradient(name: str) -> None:
    fields = assert_exact(EXACT[name], 31, 26)
    assert fields
    assert (
        all(field.stride[0] and field.stride[1] for field in fields.values()) or name == "one row"
    )


# ── random networks ──


class Random(nn.Module):
    """A chain of random steps in functional and modular style; a step that the size doesn't allow
    is left out, as the forward pass goes.
    """

    def __init__(self, steps: list[tuple]) -> None:
        super().__init__()
        self.plan = steps
        self.convs = nn.ModuleList(conv(tuple(step[1])) for step in steps)
        self.after = nn.ModuleList(nn.Identity() for _ in steps)
        self.shared = conv(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        for step, one, after in zip(self.plan, self.convs, self.after, strict=True):
            x = after(self.step(x, one, step))
        return x

    def step(self, x: Tensor, one: nn.Module, step: tuple) -> Tensor:
        kind, size, stride, padding, dilation = step
        rows, columns = (d * (k - 1) + 1 for k, d in zip(size, dilation, strict=True))
        if x.shape[-2] < max(rows + stride[0], 5) or x.shape[-1] < max(columns + stride[1], 5):
            return x
        if kind == "same":
            return F.conv2d(x, one.weight, None, 1, "same", dilation).relu_()
        if kind == "max":
            return F.max_pool2d(
                x,
                size,
                stride,
                [min(p, k // 2) for p, k in zip(padding, size, strict=True)],
                dilation,
            )
        if kind == "average":
            return F.avg_pool2d(
                x,
                size,
                stride,
                [min(p, k // 2) for p, k in zip(padding, size, strict=True)],
                ceil_mode=True,
            )
        if kind in ("reflect", "replicate", "circular", "constant"):
            return F.pad(x, (padding[1], dilation[1], dilation[0], padding[0]), mode=kind)
        if kind == "residual":
            return F.relu(self.shared(x), inplace=True) + x
        if kind == "cat":
            return torch.cat(
                [x[:, 1:], self.shared(x)[:, :1], F.avg_pool2d(x, 3, 1, 1)[:, 1:2]], 1
            )[:, :3]
        if kind == "slice":
            return x[..., padding[0] :: stride[0], padding[1] :: stride[1]]
        return F.conv2d(x, one.weight, one.bias, stride, padding, dilation)


KINDS = (
    "conv",
    "conv",
    "same",
    "max",
    "average",
    "reflect",
    "replicate",
    "circular",
    "constant",
    "residual",
    "cat",
    "slice",
)
pairs = {
    name: st.tuples(st.integers(low, high), st.integers(low, high))
    for name, low, high in (("size", 1, 4), ("stride", 1, 3), ("pad", 0, 3), ("gap", 1, 3))
}
steps = st.tuples(
    st.sampled_from(KINDS), pairs["size"], pairs["stride"], pairs["pad"], pairs["gap"]
)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(steps, min_size=2, max_size=6), st.integers(17, 40), st.integers(17, 40))
def test_box_is_exact_for_random_networks(plan: list[tuple], height: int, width: int) -> None:
    fields = assert_exact(Random(plan), height, width)
    assert not any(0 in field.stride for field in fields.values())


@given(st.lists(steps, min_size=1, max_size=4), st.integers(0, 3), st.integers(0, 3))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_windows_have_one_size_and_hold_the_boxes(plan: list[tuple], row: int, column: int) -> None:
    for field in receptive_fields(
        Model(Random([step for step in plan if step[0] not in ("reflect", "circular")]), size=32)
    ).values():
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
    assert not fields["0"].covers_image
    assert fields["2"] == ReceptiveField((32, 32), (0, 0), (0, 0), True, (32, 32), ((), ()))
    assert fields["2"].box(1, 3, 32, 32) == (0, 0, 32, 32) == fields["2"].window(1, 3)


def test_squeeze_excitation_sees_everything_behind_the_gate() -> None:
    fields = assert_exact(
        nn.Sequential(conv(3, 1, 1), SqueezeExcitation(3, 2), nn.Hardswish(), conv()), 20, 24
    )
    assert [name for name, field in fields.items() if field.covers_image] == ["1", "2", "3"]


def test_one_axis_alone_can_be_whole() -> None:
    field = receptive_fields(
        Model(nn.Sequential(conv(), Lambda(lambda _, x: x + x.sum(3, keepdim=True))), size=20),
        12,
        16,
    )["1"]
    assert (field.size, field.stride, field.offset, field.covers_image) == (
        (3, 16),
        (1, 0),
        (0, 0),
        False,
    )
    assert field.box(2, 5, 12, 16) == field.window(2, 5) == (2, 0, 5, 16)


def test_a_layer_whose_channels_come_last() -> None:
    turn, back = (
        Lambda(lambda _, x: x.permute(0, 2, 3, 1)),
        Lambda(lambda _, x: x.permute(0, 3, 1, 2)),
    )
    network = nn.Sequential(
        conv(4, 4),
        turn,
        nn.LayerNorm(3),
        nn.Linear(3, 5),
        nn.GELU(),
        nn.Linear(5, 3),
        back,
        conv(3, 1, 1),
    )
    fields = assert_exact(network, 24, 32, layers=["0", "6", "7"])
    assert {fields[str(i)] for i in range(7)} == {fields["0"]}
    assert fields["0"].box(5, 7, 24, 32) == (20, 28, 24, 32)


def test_a_network_of_tokens_has_places_until_it_flattens_them() -> None:
    model = Model(block(lambda _, x: x.flatten(2).transpose(1, 2)), size=32)
    assert list(receptive_fields(model)) == ["0"]
    with pytest.raises(
        SightlineError,
        match="layer '1' has no positions in the image; choose a spatial one such as 0",
    ):
        receptive_field(model, "1")


# ── real networks ──


@cache
def shapes_only(name: str) -> Model:
    """A network by name without the cost of its weights."""
    return load_without_weights(name)


def recursion(*operations: tuple[int, ...]) -> tuple[int, int, int]:
    """Size, stride and offset behind (kernel, stride, padding)s, as in Araujo et al.

    2019: r += (k-1)·j, j *= s.
    """
    size, jump, start = 1, 1, 0
    for kernel, stride, padding in operations:
        size, start, jump = size + (kernel - 1) * jump, start - padding * jump, jump * stride
    return size, jump, start


one, three, down = (1, 1, 0), (3, 1, 1), (2, 2, 0)
ALEX = [(11, 4, 2), (3, 2, 0), (5, 1, 2), (3, 2, 0), three, three, three]
RESNET_STEM, FIRE = [(7, 2, 3), (3, 2, 1)], [one, three]
# Each inception module counts with the 3×3 convolution or pooling of its widest branch.
GOOGLE = [
    (7, 2, 3),
    (3, 2, 0),
    one,
    three,
    (3, 2, 0),
    *[three] * 2,
    (3, 2, 0),
    *[three] * 5,
    down,
    *[three] * 2,
]
SQUEEZE = [(7, 2, 0), (3, 2, 0), *FIRE * 3, (3, 2, 0), *FIRE * 4, (3, 2, 0), *FIRE]
INCEPTION_STEM = [(3, 2, 0), (3, 1, 0), three, (3, 2, 0), one, (3, 1, 0), (3, 2, 0)]
INCEPTION = [
    *INCEPTION_STEM,
    *[three] * 6,
    three,
    (3, 2, 0),
    *[(7, 1, 3)] * 8,
    (7, 1, 3),
    (3, 2, 0),
    *[three] * 4,
]


def vgg(*blocks: int) -> list[tuple[int, ...]]:
    return [operation for count in blocks for operation in (*[three] * count, down)]


def basic(*strides: int) -> list[tuple[int, ...]]:
    return [
        *RESNET_STEM,
        *(operation for stride in strides for operation in ((3, stride, 1), three)),
    ]


def bottlenecks(*counts: int) -> list[tuple[int, ...]]:
    """With the stride in the 3×3 convolution, as torchvision has it (He et al.

    have it in the 1×1 before).
    """
    strides = [
        (2 if stage and not i else 1) for stage, count in enumerate(counts) for i in range(count)
    ]
    return [
        *RESNET_STEM,
        *(operation for stride in strides for operation in (one, (3, stride, 1), one)),
    ]


def dense(*blocks: int) -> list[tuple[int, ...]]:
    return [
        *RESNET_STEM,
        *(operation for count in blocks for operation in (*[one, three] * count, one, down)),
    ][:-2]


def mobile(*rows: tuple[int, int]) -> list[tuple[int, ...]]:
    return [
        (3, 2, 1),
        *(
            operation
            for count, stride in rows
            for i in range(count)
            for operation in (one, (3, 1 if i else stride, 1), one)
        ),
    ]


def convnext(*blocks: int) -> list[tuple[int, ...]]:
    return [
        (4, 4, 0),
        *(operation for count in blocks for operation in (*[(7, 1, 3)] * count, down)),
    ][:-1]


LITERATURE: list[tuple[str, str, list[tuple[int, ...]], int]] = [
    ("alexnet", "conv1", ALEX[:1], 11),
    ("alexnet", "conv5", ALEX, 163),
    ("alexnet", "pool5", [*ALEX, (3, 2, 0)], 195),
    ("vgg11", "pool5", vgg(1, 1, 2, 2, 2), 150),
    ("vgg16_bn", "relu3_3", vgg(2, 2, 3)[:-1], 40),
    ("vgg16_bn", "conv5_3", vgg(2, 2, 3, 3, 3)[:-1], 196),
    ("vgg16_bn", "pool5", vgg(2, 2, 3, 3, 3), 212),
    ("vgg19", "conv5_4", vgg(2, 2, 4, 4, 4)[:-1], 252),
    ("squeezenet1_0", "fire9", SQUEEZE, 155),
    ("googlenet", "inception3a", GOOGLE[:6], 43),
    ("googlenet", "inception5b", GOOGLE, 379),
    ("inception_v3", "Mixed_7c", INCEPTION, 1311),
    ("resnet18", "layer4", basic(1, 1, 2, 1, 2, 1, 2, 1), 435),
    ("resnet50", "layer3", bottlenecks(3, 4, 6), 267),
    ("resnet50", "layer4", bottlenecks(3, 4, 6, 3), 427),
    (
        "mobilenet_v2",
        "features",
        mobile((1, 1), (2, 2), (3, 2), (4, 2), (3, 1), (3, 2), (1, 1)),
        491,
    ),
    ("densenet121", "features", dense(6, 12, 24, 16), 2071),
    ("convnext_tiny", "features", convnext(3, 3, 9, 3), 1688),
    ("vit_b_16", "conv_proj", [(16, 16, 0)], 16),
]


@pytest.mark.parametrize(
    ("name", "layer", "operations", "size"),
    LITERATURE,
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_recursion_of_the_literature(
    name: str, layer: str, operations: list[tuple[int, ...]], size: int
) -> None:
    field = receptive_field(shapes_only(name), layer)
    assert recursion(*operations)[0] == size
    assert (
        recursion(*operations)
        == (field.size[0], field.stride[0], field.offset[0])
        == (field.size[1], field.stride[1], field.offset[1])
    )


def test_resnet_50_with_the_stride_of_the_paper() -> None:
    with torch.device("meta"):
        network = models.resnet50()
    for block in network.modules():
        if isinstance(block, models.resnet.Bottleneck):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
    assert receptive_field(Model(network, size=64), "layer4").size == (483, 483)


FAMILIES = [
    *(
        "alexnet",
        "vgg11",
        "vgg16_bn",
        "squeezenet1_0",
        "googlenet",
        "inception_v3",
        "resnet18",
        "resnet50",
    ),
    *("mobilenet_v2", "densenet121", "convnext_tiny", "efficientnet_b0", "vit_b_16"),
]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_spatial_layer_has_a_field(name: str) -> None:
    model = shapes_only(name)
    fields = receptive_fields(model)
    assert list(fields) == [layer.name for layer in model.layers.values() if layer.is_spatial]
    for layer, field in fields.items():
        rows, columns = (
            model.layers[layer].shape[-2:]
            if not field.unit_ranges[0]
            else map(len, field.unit_ranges)
        )
        assert (
            field.box(rows - 1, columns - 1, model.size, model.size)[2:]
            > field.box(rows // 2, columns // 2, model.size, model.size)[:2]
        )
        assert field.covers_image == (field.stride == (0, 0))
    gated = [layer for layer, field in fields.items() if field.covers_image]
    assert gated == (
        list(fields)[list(fields).index("features.1.0.block.1") :]
        if name == "efficientnet_b0"
        else []
    )


REAL: dict[str, list[str]] = {
    "squeezenet1_0": [
        "features.2",
        "features.4.expand3x3",
        "features.6",
        "features.12",
        "classifier.2",
    ],
    "googlenet": ["conv1", "maxpool2", "inception3a", "inception4b.branch4.0", "inception5b"],
    "resnet18": ["maxpool", "layer1.0.relu:1", "layer2.0.downsample.0", "layer3", "layer4"],
}


@pytest.mark.parametrize("name", REAL)
def test_real_networks_against_the_gradient(name: str) -> None:
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    assert_exact(models.get_model(name, weights=None, **options), 75, 59, layers=REAL[name])


# ── the rest of the interface ──


def test_names_and_sizes() -> None:
    model = shapes_only("squeezenet1_0")
    assert (
        receptive_field(model, "last_conv")
        == receptive_field(model, "fire9")
        == receptive_field(model, "features.12")
    )
    assert receptive_field(model, "penultimate") == receptive_field(model, "fire9")
    assert receptive_field(model, "conv1", 50, 70).image_size == (50, 70)
    assert not any(name.endswith(":in") for name in receptive_fields(model, 50, 70))
    gated = shapes_only("efficientnet_b0")
    assert receptive_field(gated, "last_conv").size == (224, 224)
    assert receptive_field(gated, "last_conv", height=96).size == (96, 224)
    assert receptive_field(gated, "last_conv", 96, 128).box(0, 1, 96, 128) == (0, 0, 96, 128)


def test_errors() -> None:
    model = shapes_only("alexnet")
    with pytest.raises(
        SightlineError,
        match=r"layer 'fc6' has no positions in the image; choose a spatial one such as avgpool",
    ):
        receptive_field(model, "fc6")
    with pytest.raises(SightlineError, match="layer 'logits' has no positions"):
        receptive_field(model, "logits")
    with pytest.raises(SightlineError, match=r"no layer named 'conv53'; did you mean conv5\?"):
        receptive_field(model, "conv53")
    with pytest.raises(SightlineError, match="can't take an image of 20×224 pixels"):
        receptive_fields(model, 20)
    with pytest.raises(SightlineError, match="at least 1×1 pixels; given was 224×0"):
        receptive_fields(model, width=0)
    field = receptive_field(model, "conv5")
    with pytest.raises(SightlineError, match="row is 13; it must lie between 0 and 12"):
        field.box(13, 0, 224, 224)
    with pytest.raises(SightlineError, match="column is -1; it must lie between 0 and 12"):
        field.box(0, -1, 224, 224)


def test_in_an_image_of_another_size_the_box_is_the_clipped_window() -> None:
    field = receptive_field(shapes_only("alexnet"), "conv5")
    assert field.box(6, 6, 224, 224) == field.window(6, 6) == (30, 30, 193, 193)
    assert field.box(6, 30, 100, 1000) == (30, 414, 100, 577)
    assert field.box(90, 0, 100, 1000) == (100, 0, 100, 97)


def test_nothing_of_the_model_changes_and_results_are_kept() -> None:
    network = nn.Sequential(conv(), nn.ReLU(inplace=True), nn.Sequential(conv()))
    model = Model(network, size=16)
    first = receptive_fields(model)
    assert not any(
        module._forward_hooks or module._forward_pre_hooks
        for module in (*model.network.modules(), *network.modules())
    )
    assert receptive_field(model, "2.0") is first["2.0"] is receptive_fields(model, 16, 16)["2.0"]
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_in_inference_mode_and_from_other_modes() -> None:
    with torch.inference_mode():
        network = nn.Sequential(conv(), nn.ReLU(), conv())
    expected = receptive_fields(Model(nn.Sequential(conv(), nn.ReLU(), conv()), size=16))
    with torch.inference_mode():
        assert receptive_fields(Model(network, size=16)) == expected
    with torch.autocast("cpu"):
        assert receptive_fields(Model(network, size=16)) == expected


def test_a_network_without_layers_has_no_fields() -> None:
    assert receptive_fields(Model(conv(), size=16)) == {}


class Residual(nn.Module):
    """Two convolutions with a functional ReLU between them, added to the input's centre."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3)
        self.second = nn.Conv2d(3, 3, (1, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x))) + x[:, :, 1:-1, 2:-2]


def test_functional_steps_have_the_fields_of_their_modules() -> None:
    fields = receptive_fields(Model(Residual(), size=32), 32, 40)
    assert fields["/relu"] == fields["first"]
    assert fields["/add"] == fields["second"]
    assert fields["/relu"] != fields["/add"]


MEANS = torch.tensor([0.2, 0.3, 0.4]).view(1, 3, 1, 1)


class Entered(nn.Module):
    """Two convolutions of an image that arrives in an order of its own."""

    def __init__(self, enter: Callable[..., Tensor]) -> None:
        super().__init__()
        self.first, self.second = conv(3, 2, 1), conv(5, 1, 2)
        self.enter = enter

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.second(self.first(self.enter(*args, **kwargs)))


class Second(Entered):
    """The image is its second parameter."""

    def forward(self, age: Tensor, image: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(image) + age.view(-1, 1, 1, 1)


@pytest.mark.parametrize(
    ("network", "options"),
    [
        (Entered(lambda x: x.permute(0, 3, 1, 2)), {"preprocess": "nhwc bgr"}),
        (Entered(lambda batch: batch["image"]), {"preprocess": lambda x: {"image": 2 * x - 1}}),
        (Entered(lambda x: x), {"preprocess": lambda x: (x - MEANS) / 3}),
        (
            Entered(lambda x: x.movedim(-1, 1)),
            {"preprocess": lambda x: torch.from_numpy(x.movedim(1, -1).numpy())},
        ),
        (Second(lambda x: x), {"inputs": {"age": 3.0}}),
        (Entered(lambda x: x.flip(1).flip(dims=(-3,))), {}),
    ],
    ids=["channels last", "dict", "own mean", "numpy", "second parameter", "flipped channels"],
)
def test_however_the_image_is_given_the_fields_are_the_same(
    network: nn.Module, options: dict[str, Any]
) -> None:
    expected = receptive_fields(Model(Entered(lambda x: x), size=(24, 40)))
    fields = receptive_fields(Model(network, size=(24, 40), **options))
    assert fields["second"] == expected["second"]
    assert fields["first"].box(3, 8, 24, 40) == (5, 15, 8, 18)
    assert expected["first"].image_size == (24, 40)


def test_an_image_that_is_mirrored_is_seen_whole_along_that_axis() -> None:
    field = receptive_fields(Model(Entered(lambda x: x.flip(3)), size=(24, 40)))["first"]
    assert field.box(3, 8, 24, 40) == (5, 0, 8, 40)
