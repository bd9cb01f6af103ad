"""Rules for what moves the numbers of a map about, and computes nothing."""

from collections.abc import Sequence

from torch import Tensor

from sightline.models.tracing.patch_rules.intervals import ChangedRegions
from sightline.models.tracing.patch_rules.patches import (
    PatchedCall,
    PatchedMaps,
    PatchRuleResult,
    require_patches,
)

# Which arguments of a view are dimensions; the first one after the input where none are named.
DIMENSION_ARGUMENTS = {"transpose": (1, 2), "split": (2,), "split_with_sizes": (2,)}


def permute_patched_maps(call: PatchedCall) -> PatchedMaps | None:
    """aten.permute(input, dims) that leaves the batch in front."""
    return permute_axes(call.operand, call.args[1])


def transpose_patched_maps(call: PatchedCall) -> PatchRuleResult:
    """aten.transpose(input, dim0, dim1): of two channel axes, or a permutation."""
    maps = call.operand
    first, second = call.args[1:]
    if maps.axes is None and maps.is_channel_dim(first) and maps.is_channel_dim(second):
        return rearrange_patch_channels(call)
    dims = list(range(maps.clean_map.tensor.ndim))
    dims[first], dims[second] = dims[second], dims[first]
    return permute_axes(maps, dims)


def permute_axes(maps: PatchedMaps, dims: Sequence[int]) -> PatchedMaps | None:
    """The same maps seen with permuted axes; None where the batch is not in front."""
    axes = [(maps.axes or range(len(dims)))[dim] for dim in dims]
    if axes[0] != 0:
        return None
    permutation = None if axes == sorted(axes) else tuple(axes)
    return PatchedMaps(maps.clean_map, maps.regions, maps.patches, permutation)


def rearrange_patch_channels(call: PatchedCall) -> PatchRuleResult:
    """Views that leave the batch and the positions as they are."""
    maps = call.operand
    name = call.func.overloadpacket.__name__
    extra_dims = 1 if name == "unsqueeze" else 0
    for argument in DIMENSION_ARGUMENTS.get(name, (1,)):
        if not maps.is_channel_dim(call.get_argument(argument, "dim", 0), extra_dims):
            return None

    clean_results = call.run_operation(lambda maps: maps.clean_map.tensor)
    if isinstance(clean_results, Tensor):
        return call.make_patched_maps(maps.regions, lambda _: call.run_operation(require_patches))
    results: list[PatchedMaps | None] = []
    for index in range(len(clean_results)):

        def take_result(_: ChangedRegions, index: int = index) -> Tensor:
            return call.run_operation(require_patches)[index]

        results.append(call.make_patched_maps(maps.regions, take_result, index))
    return results


def reshape_patch_channels(call: PatchedCall) -> PatchedMaps | None:
    """aten.view(input, size) of the dimensions between the batch and the positions."""
    maps = call.operand
    shape = tuple(call.args[1])
    if len(shape) < 3 or shape[0] != call.image_count or shape[-2:] != maps.map_size:
        return None
    channel_shape = shape[1:-2]
    call.get_clean_map(compute=lambda: maps.clean_map.tensor.reshape(1, *shape[1:]))

    def reshape(regions: ChangedRegions) -> Tensor:
        patches = require_patches(maps)
        return patches.reshape(-1, *channel_shape, regions.height, regions.width)

    return call.make_patched_maps(maps.regions, reshape)


def copy_patches(call: PatchedCall) -> PatchedMaps:
    """Copies. Patches are never written to, so they need not be copied."""
    return call.make_patched_maps(call.operand.regions, lambda _: require_patches(call.operand))


def pad_patched_maps(call: PatchedCall) -> PatchedMaps | None:
    """aten.constant_pad_nd(input, pad, value) around the positions."""
    maps = call.operand
    padding = call.args[1]
    if len(padding) > 4 or min(padding) < 0:
        return None
    left, _, top, _ = (*padding, 0, 0)[:4]
    height, width = call.get_clean_map().tensor.shape[-2:]
    regions = ChangedRegions(
        maps.regions.rows.shift_starts(top, height), maps.regions.cols.shift_starts(left, width)
    )
    return call.make_patched_maps(regions, lambda _: require_patches(maps))
