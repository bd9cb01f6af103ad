"""Rules for what reduces all positions to one number."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sightline.models.tracing.patch_rules.patches import PatchedCall, require_patches


def average_patched_maps(call: PatchedCall, dims: Sequence[int] | None) -> Tensor | None:
    """A mean over all positions: that of the clean map, plus what the patch changes."""
    maps = call.operand
    ndim = maps.clean_map.tensor.ndim
    if dims is None or sorted(dim % ndim for dim in dims) != maps.position_dims:
        return None
    channel_axes = [axis for axis in maps.axes or () if axis < ndim - 2]
    if channel_axes != sorted(channel_axes):
        return None
    # As the network sees it: a mean has no positions that would have to be in their place.
    clean_mean = call.get_clean_map(
        compute=lambda: call.func(maps.clean_tensor, *call.args[1:], **call.kwargs)
    ).tensor
    if call.survey:
        return clean_mean.repeat(call.image_count, *[1] * (clean_mean.ndim - 1))
    clean_patches = maps.cut_regions(maps.regions, without_patches=True)
    difference = require_patches(maps) - clean_patches
    # The sum over many positions may be beyond half precision.
    wide_dtype = torch.promote_types(difference.dtype, torch.float32)
    change = difference.sum((-2, -1), dtype=wide_dtype) / math.prod(maps.map_size)
    return clean_mean + change.to(clean_mean).reshape(len(change), *clean_mean.shape[1:])
