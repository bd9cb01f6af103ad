"""Batches of maps that differ from one clean map inside a patch each, and operations on them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from sightline.models.tracing.patch_rules.intervals import ChangedRegions, IndexArray

# What most arguments of operations are that hold no tensor. They are passed over, since each
# operation's arguments are looked through several times.
PLAIN_TYPES = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device})

T = TypeVar("T")

# What stands beyond the border of a map: an index of the two extra rows of `CleanMap.pixel_rows`.
ZERO_BORDER = 0
LOWEST_BORDER = 1


class CleanMap:
    """A map of the clean image, 1×…×H×W."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    @cached_property
    def pixel_rows(self) -> Tensor:
        """The map as (H·W + 2)×channels: one pixel a row, then a row of zeros and one of −∞.

        Gathering pixels then copies whole rows, those beyond the border too.
        """
        pixels = flatten_to_planes(self.tensor)[0].flatten(1).t()
        zeros = torch.zeros_like(pixels[:1])
        lowest = torch.full_like(pixels[:1], -torch.inf)
        return torch.cat([pixels, zeros, lowest])


@dataclass(frozen=True, eq=False)
class PatchedMaps:
    """A batch of N maps that are clean but for a patch each.

    Attributes:
        clean_map: the map around the patches.
        regions: where the patches are.
        patches: N×…×h×w; None while only the geometry is asked for (a survey).
        axes: for each axis of the tensor that the network sees, which axis of the maps N×…×H×W it
            is: (0, 2, 3, 1) for N×H×W×C; None where the network sees the maps as they are.
    """

    clean_map: CleanMap
    regions: ChangedRegions
    patches: Tensor | None = None
    axes: tuple[int, ...] | None = None

    @property
    def map_size(self) -> tuple[int, int]:
        """Rows and columns of the map."""
        return self.regions.rows.length, self.regions.cols.length

    # ── the axes that the network sees ──

    def lay_out(self, maps: Tensor) -> Tensor:
        """Maps N×…×H×W with the axes that the network sees."""
        return maps if self.axes is None else maps.permute(self.axes)

    def restore_layout(self, tensor: Tensor) -> Tensor:
        """The reverse of `lay_out`; a tensor of fewer axes stays as it is."""
        if self.axes is None or tensor.ndim != len(self.axes):
            return tensor
        return tensor.permute(np.argsort(self.axes).tolist())

    @property
    def clean_tensor(self) -> Tensor:
        """The clean map as the network sees it."""
        return self.lay_out(self.clean_map.tensor)

    @property
    def position_dims(self) -> list[int]:
        """The dimensions, as the network sees them, that are rows and columns."""
        ndim = self.clean_map.tensor.ndim
        axes = self.axes or range(ndim)
        return [dim for dim in range(ndim) if axes[dim] >= ndim - 2]

    def is_channel_dim(self, dim: int, extra_dims: int = 0) -> bool:
        """Whether a dimension, as the network sees it, is neither batch nor rows nor columns.

        `extra_dims` are so many more channel dimensions than the maps have.
        """
        ndim = self.clean_map.tensor.ndim + extra_dims
        axis = dim % ndim if self.axes is None else self.axes[dim]
        return 0 < axis < ndim - 2

    # ── what is seen where ──

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
        """What a window of height × width at (top, left) of each map shows, N×…×height×width.

        Beyond the border are zeros or −∞. `without_patches` shows the clean map.
        """
        rows = tops[:, None] + np.arange(height)
        cols = lefts[:, None] + np.arange(width)
        pixel_index = index_map_pixels(rows, cols, self.map_size, border)

        pixels = self.clean_map.pixel_rows
        flat_index = torch.from_numpy(pixel_index.reshape(-1)).to(pixels.device)
        gathered = pixels.index_select(0, flat_index)
        windows = gathered.view(len(tops), height, width, -1).permute(0, 3, 1, 2)
        if not without_patches:
            patch_tops = self.regions.rows.start - tops
            patch_lefts = self.regions.cols.start - lefts
            write_patches_into(windows, require_patches(self), patch_tops, patch_lefts)
        return windows.reshape(len(tops), *self.clean_map.tensor.shape[1:-2], height, width)

    def cut_regions(self, regions: ChangedRegions, *, without_patches: bool = False) -> Tensor:
        """What regions of equal size show, N×…×h×w."""
        if self.patches is not None and not without_patches and regions == self.regions:
            return self.patches
        return self.cut_windows(
            regions.rows.start,
            regions.cols.start,
            regions.height,
            regions.width,
            without_patches=without_patches,
        )

    def build_full_tensor(self, image_count: int) -> Tensor:
        """The tensor of `image_count` images as the network sees it."""
        return self.lay_out(self.build_full_maps(image_count))

    def build_full_maps(self, image_count: int) -> Tensor:
        """The whole maps N×…×H×W of `image_count` images."""
        if self.patches is not None and self.patches.shape[-2:] == self.map_size:
            return self.patches
        clean = self.clean_map.tensor
        maps = clean.repeat(image_count, *[1] * (clean.ndim - 1))
        if maps.ndim == 4:
            maps = maps.contiguous(memory_format=torch.channels_last)
        if self.patches is not None:
            planes = flatten_to_planes(maps)
            write_patches_into(
                planes, self.patches, self.regions.rows.start, self.regions.cols.start
            )
        return maps


def index_map_pixels(
    rows: IndexArray, cols: IndexArray, map_size: tuple[int, int], border: int
) -> IndexArray:
    """Indices into `CleanMap.pixel_rows` of rows N×h and columns N×w of a map, N×h×w.

    Beyond the map's border it is the index of the extra row number `border`.
    """
    map_height, map_width = map_size
    row_outside = (rows < 0) | (rows >= map_height)
    col_outside = (cols < 0) | (cols >= map_width)
    outside = row_outside[:, :, None] | col_outside[:, None, :]
    pixel_index = rows[:, :, None] * map_width + cols[:, None, :]
    pixel_index[outside] = map_height * map_width + border
    return pixel_index


def flatten_to_planes(maps: Tensor) -> Tensor:
    """N×…×H×W as N×C×H×W."""
    return maps.reshape(len(maps), -1, *maps.shape[-2:])


def write_patches_into(maps: Tensor, patches: Tensor, tops: IndexArray, lefts: IndexArray) -> None:
    """Writes a patch into each of the maps N×C×H×W, as far as it lies inside.

    Patches at the same position are written together.
    """
    patches = flatten_to_planes(patches)
    corners, corner_index = np.unique(np.stack([tops, lefts]), axis=1, return_inverse=True)
    corner_index = corner_index.reshape(-1)
    for number, (top, left) in enumerate(corners.T.tolist()):
        height = count_overlap(top, patches.shape[-2], maps.shape[-2])
        width = count_overlap(left, patches.shape[-1], maps.shape[-1])
        visible = patches[:, :, max(-top, 0) :, max(-left, 0) :]
        visible = visible[:, :, :height, :width]
        target = maps[:, :, max(top, 0) :, max(left, 0) :]
        target = target[:, :, :height, :width]
        members = np.flatnonzero(corner_index == number)
        for images in split_into_slices(members):
            target[images].copy_(visible[images])


def count_overlap(start: int, size: int, length: int) -> int:
    """How many of `size` elements from `start` lie in an axis of `length`."""
    return max(0, min(start + size, length) - max(start, 0))


def split_into_slices(indices: IndexArray) -> list[slice]:
    """Slices that hold these indices: one where they are evenly spaced.

    Copying a slice is faster than copying picked elements.
    """
    steps = np.unique(np.diff(indices))
    if len(steps) > 1:
        return [slice(i, i + 1) for i in indices.tolist()]
    step = int(steps[0]) if len(steps) else 1
    return [slice(int(indices[0]), int(indices[-1]) + 1, step)]


def require_patches(patched_maps: PatchedMaps) -> Tensor:
    """The patches; raises TypeError in a survey, which has none."""
    if patched_maps.patches is None:
        raise TypeError("a survey has no patches")
    return patched_maps.patches


# ── operations ──


@dataclass
class OperationRecord:
    """What one operation of the survey leaves for the passes of the batches.

    Attributes:
        number: names the operation's result.
        clean_maps: its results for the clean image.
        constants: its other tensors, kept alive so that no other tensor takes their address.
        multiply_adds: of running it for the clean image; None before they were counted.
    """

    number: int
    clean_maps: list[CleanMap] = field(default_factory=list[CleanMap])
    constants: list[Tensor] = field(default_factory=list[Tensor])
    multiply_adds: float | None = None


@dataclass(frozen=True, eq=False)
class PatchedCall:
    """One call of an operation with at least one `PatchedMaps` among its arguments.

    Attributes:
        func: the operation, an overload of torch.ops.aten.
        args: positional arguments.
        kwargs: keyword arguments.
        record: what the survey left of this call.
        image_count: images of the batch.
        survey: whether only the geometry is asked for.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    record: OperationRecord
    image_count: int
    survey: bool

    @property
    def operand(self) -> PatchedMaps:
        """The first argument."""
        return self.args[0]

    @property
    def first_operand(self) -> PatchedMaps:
        """The first patched maps among the arguments."""
        return self.patched_maps[0]

    @cached_property
    def patched_maps(self) -> list[PatchedMaps]:
        """All patched maps among the arguments."""
        return find_instances((self.args, self.kwargs), PatchedMaps)

    def get_argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or name."""
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)

    def get_clean_map(self, index: int = 0, compute: Callable[[], Any] | None = None) -> CleanMap:
        """The result for the clean image, computed once: by the operation, or by `compute`."""
        if not self.record.clean_maps:
            if compute is not None:
                results = compute()
            else:
                results = self.run_operation(lambda maps: maps.clean_map.tensor)
            if not isinstance(results, (tuple, list)):
                results = [results]
            self.record.clean_maps = [CleanMap(result) for result in results]
        return self.record.clean_maps[index]

    def run_operation(self, convert: Callable[[PatchedMaps], Tensor]) -> Any:
        """The operation on maps N×…×H×W in place of the patched maps, which have the same axes.

        The results are maps N×…×H×W, too.
        """

        def lay_out_maps(maps: PatchedMaps) -> Tensor:
            return maps.lay_out(convert(maps))

        args = replace_instances(self.args, PatchedMaps, lay_out_maps)
        kwargs = replace_instances(dict(self.kwargs), PatchedMaps, lay_out_maps)
        results = self.func(*args, **kwargs)
        return replace_instances(results, Tensor, self.first_operand.restore_layout)

    def make_patched_maps(
        self,
        regions: ChangedRegions,
        make_patches: Callable[[ChangedRegions], Tensor],
        index: int = 0,
    ) -> PatchedMaps:
        """The result: its regions, and the patches that `make_patches` computes for them."""
        clean_map = self.get_clean_map(index)
        axes = self.first_operand.axes
        if self.survey:
            return PatchedMaps(clean_map, regions, axes=axes)
        regions = regions.equalize_sizes()
        return PatchedMaps(clean_map, regions, make_patches(regions), axes)


# What a rule returns. None: the operation is run on whole maps after all. None in a sequence: a
# result that must not be used, such as the indices of a max pooling.
PatchRuleResult = PatchedMaps | Tensor | Sequence[PatchedMaps | None] | None


def find_instances(values: Iterable[Any], kind: type[T]) -> list[T]:
    """The instances of a type in the nested tuples, lists and dicts that operations take."""
    instances: list[T] = []
    for value in values:
        if type(value) in PLAIN_TYPES:
            continue
        if isinstance(value, kind):
            instances.append(value)
        elif isinstance(value, (tuple, list)):
            instances += find_instances(cast(Sequence[Any], value), kind)
        elif isinstance(value, dict):
            instances += find_instances(cast(dict[Any, Any], value).values(), kind)
    return instances


def replace_instances(value: Any, kind: type, convert: Callable[[Any], Any]) -> Any:
    """Nested tuples, lists and dicts with every instance of a type converted."""
    if isinstance(value, kind):
        return convert(value)
    if isinstance(value, (tuple, list)):
        items = cast(Sequence[Any], value)
        return type(value)(
            [
                item if type(item) in PLAIN_TYPES else replace_instances(item, kind, convert)
                for item in items
            ]
        )
    if isinstance(value, dict):
        entries = cast(dict[Any, Any], value).items()
        return {key: replace_instances(item, kind, convert) for key, item in entries}
    return value


def make_call_key(value: Any, get_number: Callable[[Tensor], Any]) -> Any:
    """The arguments of a call as a key: calls of a function with the same key give the same.

    `get_number` gives the number that names a tensor, None for a constant, which its address,
    version and layout name.
    """
    kind = type(value)
    if kind is float or kind is bool:
        return (kind.__name__, repr(value))  # to Python, True is 1, and 0.0 is -0.0
    if kind in PLAIN_TYPES:
        return value
    if isinstance(value, Tensor):
        number = get_number(value)
        if number is not None:
            return ("tensor", number)
        version = 0 if value.is_inference() else value._version
        return ("constant", value.data_ptr(), version, value.dtype, value.size(), value.stride())
    if isinstance(value, dict):
        entries = cast(dict[Any, Any], value).items()
        return tuple([(key, make_call_key(item, get_number)) for key, item in entries])
    if isinstance(value, (tuple, list)):
        items = cast(Sequence[Any], value)
        return tuple(
            [item if type(item) is int else make_call_key(item, get_number) for item in items]
        )
    return value


def find_functional_overload(func: Any) -> Any:
    """The operation that returns what an in-place operation writes.

    Raises RuntimeError where torch has none.
    """
    packet = getattr(torch.ops.aten, func.overloadpacket.__name__.removesuffix("_"), None)
    if not hasattr(packet, func._overloadname):
        raise RuntimeError(f"there is no {func} that leaves its operand alone")
    return getattr(packet, func._overloadname)


def count_multiply_adds(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
) -> float:
    """Multiply-adds of an operation; 0 where torch's counter does not know it."""
    if func is torch.ops.aten._native_multi_head_attention.default:
        count, tokens, width = args[0].shape
        return float(count * tokens * width * (4 * width + 2 * tokens))
    if func is torch.ops.aten.linear.default:
        return float(result.numel() * args[0].shape[-1])
    if func is torch.ops.aten.convolution.default and not args[6]:  # not transposed
        weight = args[1]
        return float(result.numel() * (weight.numel() // max(1, len(weight))))
    formula = flop_registry.get(func.overloadpacket)
    if formula is None:
        return 0.0
    return formula(*args, **kwargs, out_val=result) / 2
