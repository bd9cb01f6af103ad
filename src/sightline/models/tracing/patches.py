"""Batches of maps that differ from one clean map inside a patch each, and the call of an operation on such batches."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from sightline.models.tracing.intervals import ChangedRegions, IndexArray

ZERO_BORDER, LOWEST_BORDER = 0, 1  # what stands beyond the border of a map


class CleanMap:
    """A map of the clean image, 1×…×H×W."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    @cached_property
    def pixel_rows(self) -> Tensor:
        """One pixel a row, and two rows more for what stands beyond the border: gathering is copying whole rows."""
        pixels = flatten_to_planes(self.tensor)[0].flatten(1).t()
        return torch.cat(
            [pixels, torch.zeros_like(pixels[:1]), torch.full_like(pixels[:1], -torch.inf)]
        )


@dataclass(frozen=True, eq=False)
class PatchedMaps:
    """A batch of maps: clean but for a patch each, N×…×h×w at `cone`. Without patches while only the geometry is asked for."""

    clean_map: CleanMap
    regions: ChangedRegions
    patches: Tensor | None = None

    @property
    def map_size(self) -> tuple[int, int]:
        return self.regions.rows.length, self.regions.cols.length

    def cut_windows(
        self,
        tops: IndexArray,
        lefts: IndexArray,
        height: int,
        width: int,
        border: int = ZERO_BORDER,
        *,
        without_patches: bool = False,
    ) -> Tensor:
        """What height × width cut-outs at (top, left) of each map show, N×…×height×width; beyond the border zeros or −∞."""
        y, x = tops[:, None] + np.arange(height), lefts[:, None] + np.arange(width)
        index = y[:, :, None] * self.map_size[1] + x[:, None, :]
        outside = ((y < 0) | (y >= self.map_size[0]))[:, :, None] | (
            (x < 0) | (x >= self.map_size[1])
        )[:, None, :]
        index[outside] = self.map_size[0] * self.map_size[1] + border
        pixels = self.clean_map.pixel_rows
        found = pixels.index_select(0, torch.from_numpy(index.reshape(-1)).to(pixels.device)).view(
            len(tops), height, width, -1
        )
        found = found.permute(0, 3, 1, 2)
        if not without_patches:
            write_patches_into(
                found, self.patches, self.regions.rows.start - tops, self.regions.cols.start - lefts
            )  # pyright: ignore[reportArgumentType]
        return found.reshape(len(tops), *self.clean_map.tensor.shape[1:-2], height, width)

    def cut_regions(self, regions: ChangedRegions, *, without_patches: bool = False) -> Tensor:
        """What an even cone shows."""
        if self.patches is not None and not without_patches and regions == self.regions:
            return self.patches
        return self.cut_windows(
            regions.rows.start,
            regions.cols.start,
            regions.height,
            regions.width,
            without_patches=without_patches,
        )

    def build_full_maps(self, image_count: int) -> Tensor:
        """The whole maps of `count` images."""
        if self.patches is not None and self.patches.shape[-2:] == self.map_size:
            return self.patches
        found = self.clean_map.tensor.repeat(image_count, *[1] * (self.clean_map.tensor.ndim - 1))
        found = found.contiguous(memory_format=torch.channels_last) if found.ndim == 4 else found
        if self.patches is not None:
            write_patches_into(
                flatten_to_planes(found),
                self.patches,
                self.regions.rows.start,
                self.regions.cols.start,
            )
        return found


def flatten_to_planes(maps: Tensor) -> Tensor:
    """N×…×H×W as N×C×H×W."""
    return maps.reshape(len(maps), -1, *maps.shape[-2:])


def write_patches_into(maps: Tensor, patches: Tensor, tops: IndexArray, lefts: IndexArray) -> None:
    """Writes a patch into each of N×C×H×W maps, as far as it lies inside. Windows with the same place go together."""
    patches = flatten_to_planes(patches)
    places, kind = np.unique(np.stack([tops, lefts]), axis=1, return_inverse=True)
    for i, (y, x) in enumerate(places.T.tolist()):
        height, width = (
            max(0, min(start + size, end) - max(start, 0))
            for start, size, end in zip((y, x), patches.shape[-2:], maps.shape[-2:], strict=True)
        )
        part = patches[:, :, max(-y, 0) :, max(-x, 0) :][:, :, :height, :width]
        target = maps[:, :, max(y, 0) :, max(x, 0) :][:, :, :height, :width]
        for which in split_into_slices(np.flatnonzero(kind.reshape(-1) == i)):
            target[which].copy_(part[which])


def split_into_slices(indices: IndexArray) -> list[slice]:
    """Slices that hold these indices: one where they are evenly spaced, for copying slices is faster than picking."""
    steps = np.unique(np.diff(indices))
    if len(steps) > 1:
        return [slice(i, i + 1) for i in indices.tolist()]
    return [slice(int(indices[0]), int(indices[-1]) + 1, int(steps[0]) if len(steps) else 1)]


def require_patches(patched_maps: PatchedMaps) -> Tensor:
    """The patch, outside of a survey."""
    if patched_maps.patches is None:
        raise TypeError("a survey has no patches")
    return patched_maps.patches


@dataclass
class OperationRecord:
    """What one operation of the clean pass leaves for the passes of the batches; its number names the result."""

    number: int
    clean_maps: list[CleanMap] = field(default_factory=list[CleanMap])
    constants: list[Tensor] = field(default_factory=list[Tensor])


@dataclass(frozen=True)
class PatchedCall:
    """One call of an operation at least one of whose tensors is a Local, for `count` images; `survey` asks for the geometry alone."""

    func: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    record: OperationRecord
    image_count: int
    survey: bool

    @property
    def operand(self) -> PatchedMaps:
        return self.args[0]

    def get_argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by place or name."""
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)

    def get_clean_map(self, index: int = 0, compute: Callable[[], Any] | None = None) -> CleanMap:
        """The result for the clean image, computed once, by the operation or by `make`."""
        if not self.record.clean_maps:
            found = (
                compute() if compute else self.run_operation(lambda local: local.clean_map.tensor)
            )
            self.record.clean_maps = [
                CleanMap(out) for out in (found if isinstance(found, (tuple, list)) else [found])
            ]
        return self.record.clean_maps[index]

    def run_operation(self, convert: Callable[[PatchedMaps], Tensor]) -> Any:
        """The operation with other tensors for the Locals."""
        return self.func(
            *replace_instances(self.args, PatchedMaps, convert),
            **replace_instances(dict(self.kwargs), PatchedMaps, convert),
        )

    def make_patched_maps(
        self,
        regions: ChangedRegions,
        make_patches: Callable[[ChangedRegions], Tensor],
        index: int = 0,
    ) -> PatchedMaps:
        """The result, from its cone and what makes the patch for an even one."""
        if self.survey:
            return PatchedMaps(self.get_clean_map(index), regions)
        regions = regions.equalize_sizes()
        return PatchedMaps(self.get_clean_map(index), regions, make_patches(regions))


PatchRuleResult = (
    PatchedMaps | Tensor | Sequence[PatchedMaps | None] | None
)  # None: no rule after all; inside a sequence: not to be used


def replace_instances(value: Any, kind: type, convert: Callable[[Any], Any]) -> Any:
    """Nested tuples, lists and dicts with everything of one type exchanged."""
    if isinstance(value, kind):
        return convert(value)
    if isinstance(value, (tuple, list)):
        return type(value)(replace_instances(item, kind, convert) for item in value)
    return (
        {key: replace_instances(item, kind, convert) for key, item in value.items()}
        if isinstance(value, dict)
        else value
    )


def make_call_key(value: Any, get_number: Callable[[Tensor], Any]) -> Any:
    """Arguments as a key: two calls of a function with the same key give the same. `number` is a tensor's name, if it has one."""
    if isinstance(value, Tensor):
        name = get_number(value)
        seen = 0 if value.is_inference() else value._version
        return (
            ("constant", value.data_ptr(), seen, value.dtype, *value.shape, *value.stride())
            if name is None
            else ("tensor", name)
        )
    if isinstance(value, dict):
        return tuple((key, make_call_key(item, get_number)) for key, item in value.items())
    return (
        tuple(make_call_key(item, get_number) for item in value)
        if isinstance(value, (tuple, list))
        else value
    )


def find_functional_overload(func: Any) -> Any:
    """The operation that gives what `func` writes."""
    packet = getattr(torch.ops.aten, func.overloadpacket.__name__.removesuffix("_"), None)
    if not hasattr(packet, func._overloadname):
        raise RuntimeError(f"there is no {func} that leaves its operand alone")
    return getattr(packet, func._overloadname)


def count_multiply_adds(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
) -> float:
    """What an operation takes, where torch knows."""
    if func is torch.ops.aten._native_multi_head_attention.default:
        count, tokens, width = args[0].shape
        return float(count * tokens * width * (4 * width + 2 * tokens))
    formula = flop_registry.get(func.overloadpacket)
    return formula(*args, **kwargs, out_val=result) / 2 if formula else 0.0
