"""Batches of maps that differ from one clean map inside a patch each, and the call of an operation on such batches."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from .cones import Cone, Indices

ZERO, LOWEST = 0, 1  # what stands beyond the border of a map


class Clean:
    """A map of the clean image, 1×…×H×W."""

    def __init__(self, tensor: Tensor) -> None:
        self.map = tensor

    @cached_property
    def pixels(self) -> Tensor:
        """One pixel a row, and two rows more for what stands beyond the border: gathering is copying whole rows."""
        pixels = planes(self.map)[0].flatten(1).t()
        return torch.cat([pixels, torch.zeros_like(pixels[:1]), torch.full_like(pixels[:1], -torch.inf)])


@dataclass(frozen=True, eq=False)
class Local:
    """A batch of maps: clean but for a patch each, N×…×h×w at `cone`. Without patches while only the geometry is asked for."""

    clean: Clean
    cone: Cone
    patch: Tensor | None = None

    @property
    def size(self) -> tuple[int, int]:
        return self.cone.rows.length, self.cone.cols.length

    def around(self, top: Indices, left: Indices, height: int, width: int, beyond: int = ZERO, *, clean: bool = False) -> Tensor:
        """What height × width cut-outs at (top, left) of each map show, N×…×height×width; beyond the border zeros or −∞."""
        y, x = top[:, None] + np.arange(height), left[:, None] + np.arange(width)
        index = y[:, :, None] * self.size[1] + x[:, None, :]
        outside = ((y < 0) | (y >= self.size[0]))[:, :, None] | ((x < 0) | (x >= self.size[1]))[:, None, :]
        index[outside] = self.size[0] * self.size[1] + beyond
        pixels = self.clean.pixels
        found = pixels.index_select(0, torch.from_numpy(index.reshape(-1)).to(pixels.device)).view(len(top), height, width, -1)
        found = found.permute(0, 3, 1, 2)
        if not clean:
            paste(found, self.patch, self.cone.rows.start - top, self.cone.cols.start - left)  # pyright: ignore[reportArgumentType]
        return found.reshape(len(top), *self.clean.map.shape[1:-2], height, width)

    def at(self, cone: Cone, *, clean: bool = False) -> Tensor:
        """What an even cone shows."""
        if self.patch is not None and not clean and cone == self.cone:
            return self.patch
        return self.around(cone.rows.start, cone.cols.start, cone.height, cone.width, clean=clean)

    def whole(self, count: int) -> Tensor:
        """The whole maps of `count` images."""
        if self.patch is not None and self.patch.shape[-2:] == self.size:
            return self.patch
        found = self.clean.map.repeat(count, *[1] * (self.clean.map.ndim - 1))
        found = found.contiguous(memory_format=torch.channels_last) if found.ndim == 4 else found
        if self.patch is not None:
            paste(planes(found), self.patch, self.cone.rows.start, self.cone.cols.start)
        return found


def planes(maps: Tensor) -> Tensor:
    """N×…×H×W as N×C×H×W."""
    return maps.reshape(len(maps), -1, *maps.shape[-2:])


def paste(maps: Tensor, patch: Tensor, top: Indices, left: Indices) -> None:
    """Writes a patch into each of N×C×H×W maps, as far as it lies inside. Windows with the same place go together."""
    patch = planes(patch)
    places, kind = np.unique(np.stack([top, left]), axis=1, return_inverse=True)
    for i, (y, x) in enumerate(places.T.tolist()):
        height, width = (
            max(0, min(start + size, end) - max(start, 0))
            for start, size, end in zip((y, x), patch.shape[-2:], maps.shape[-2:], strict=True)
        )
        part = patch[:, :, max(-y, 0) :, max(-x, 0) :][:, :, :height, :width]
        target = maps[:, :, max(y, 0) :, max(x, 0) :][:, :, :height, :width]
        for which in runs(np.flatnonzero(kind.reshape(-1) == i)):
            target[which].copy_(part[which])


def runs(at: Indices) -> list[slice]:
    """Slices that hold these indices: one where they are evenly spaced, for copying slices is faster than picking."""
    steps = np.unique(np.diff(at))
    if len(steps) > 1:
        return [slice(i, i + 1) for i in at.tolist()]
    return [slice(int(at[0]), int(at[-1]) + 1, int(steps[0]) if len(steps) else 1)]


def patch_of(x: Local) -> Tensor:
    """The patch, outside of a survey."""
    if x.patch is None:
        raise TypeError("a survey has no patches")
    return x.patch


@dataclass
class Memory:
    """What one operation of the clean pass leaves for the passes of the batches; its number names the result."""

    number: int
    clean: list[Clean] = field(default_factory=list[Clean])
    constants: list[Tensor] = field(default_factory=list[Tensor])


@dataclass(frozen=True)
class Call:
    """One call of an operation at least one of whose tensors is a Local, for `count` images; `survey` asks for the geometry alone."""

    func: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    memory: Memory
    count: int
    survey: bool

    @property
    def x(self) -> Local:
        return self.args[0]

    def get(self, at: int, name: str, default: Any = None) -> Any:
        """An argument by place or name."""
        return self.args[at] if at < len(self.args) else self.kwargs.get(name, default)

    def clean(self, index: int = 0, make: Callable[[], Any] | None = None) -> Clean:
        """The result for the clean image, computed once, by the operation or by `make`."""
        if not self.memory.clean:
            found = make() if make else self.run(lambda local: local.clean.map)
            self.memory.clean = [Clean(out) for out in (found if isinstance(found, (tuple, list)) else [found])]
        return self.memory.clean[index]

    def run(self, value: Callable[[Local], Tensor]) -> Any:
        """The operation with other tensors for the Locals."""
        return self.func(*swap(self.args, Local, value), **swap(dict(self.kwargs), Local, value))

    def local(self, cone: Cone, patch: Callable[[Cone], Tensor], index: int = 0) -> Local:
        """The result, from its cone and what makes the patch for an even one."""
        if self.survey:
            return Local(self.clean(index), cone)
        cone = cone.even()
        return Local(self.clean(index), cone, patch(cone))


Result = Local | Tensor | Sequence[Local | None] | None  # None: no rule after all; inside a sequence: not to be used


def swap(value: Any, kind: type, by: Callable[[Any], Any]) -> Any:
    """Nested tuples, lists and dicts with everything of one type exchanged."""
    if isinstance(value, kind):
        return by(value)
    if isinstance(value, (tuple, list)):
        return type(value)(swap(item, kind, by) for item in value)
    return {key: swap(item, kind, by) for key, item in value.items()} if isinstance(value, dict) else value


def signature(value: Any, number: Callable[[Tensor], Any]) -> Any:
    """Arguments as a key: two calls of a function with the same key give the same. `number` is a tensor's name, if it has one."""
    if isinstance(value, Tensor):
        name = number(value)
        seen = 0 if value.is_inference() else value._version
        return ("constant", value.data_ptr(), seen, value.dtype, *value.shape, *value.stride()) if name is None else ("tensor", name)
    if isinstance(value, dict):
        return tuple((key, signature(item, number)) for key, item in value.items())
    return tuple(signature(item, number) for item in value) if isinstance(value, (tuple, list)) else value


def functional(func: Any) -> Any:
    """The operation that gives what `func` writes."""
    packet = getattr(torch.ops.aten, func.overloadpacket.__name__.removesuffix("_"), None)
    if not hasattr(packet, func._overloadname):
        raise RuntimeError(f"there is no {func} that leaves its operand alone")
    return getattr(packet, func._overloadname)


def multiply_adds(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], found: Any) -> float:
    """What an operation takes, where torch knows."""
    if func is torch.ops.aten._native_multi_head_attention.default:
        count, tokens, width = args[0].shape
        return float(count * tokens * width * (4 * width + 2 * tokens))
    formula = flop_registry.get(func.overloadpacket)
    return formula(*args, **kwargs, out_val=found) / 2 if formula else 0.0
