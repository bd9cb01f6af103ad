"""Which operation has which rule.

A rule is a function of a `PatchedCall` that returns the result as `PatchedMaps`, or None: then, as
where there is no rule, the operation is run on whole maps.

To add a rule for an operation:

1. find its name in torch.ops.aten, and the order of its arguments (`torch.ops.aten.NAME.default`);
2. return None for every argument that your rule does not handle;
3. say which regions of the result change, from `call.operand.regions`;
4. return `call.make_patched_maps(regions, make_patches)`, where `make_patches(regions)` computes
   the patches, for instance by the operation itself on `call.operand.cut_windows(…)`;
5. enter it in `LAYOUT_RULES` if it handles maps whose axes are permuted (`PatchedMaps.axes`), else
   in `PLAIN_RULES`, and test it in tests/models/tracing/patch_rules/.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from sightline.models.tracing.patch_rules.layout import (
    copy_patches,
    pad_patched_maps,
    permute_patched_maps,
    rearrange_patch_channels,
    reshape_patch_channels,
    transpose_patched_maps,
)
from sightline.models.tracing.patch_rules.patches import (
    PatchedCall,
    PatchedMaps,
    PatchRuleResult,
)
from sightline.models.tracing.patch_rules.pointwise import (
    apply_linear_to_patches,
    apply_pointwise_to_patches,
    batch_normalize_patches,
    concatenate_patches,
    layer_normalize_patches,
)
from sightline.models.tracing.patch_rules.reductions import average_patched_maps
from sightline.models.tracing.patch_rules.sliding import (
    adaptive_pool_patches,
    average_pool_patches,
    convolve_patches,
    max_pool_patches,
)

aten: Any = torch.ops.aten

PatchRule = Callable[[PatchedCall], PatchRuleResult]

# Functions of single elements that torch does not tag as such.
UNTAGGED_POINTWISE = {aten.hardswish}

# Rules for maps N×…×H×W only.
PLAIN_RULES: dict[Any, PatchRule] = {
    aten.convolution: convolve_patches,
    aten.max_pool2d_with_indices: max_pool_patches,
    aten.avg_pool2d: average_pool_patches,
    aten._adaptive_avg_pool2d: adaptive_pool_patches,
    aten.native_batch_norm: batch_normalize_patches,
    aten._native_batch_norm_legit_no_training: batch_normalize_patches,
    aten.cudnn_batch_norm: batch_normalize_patches,
    aten.constant_pad_nd: pad_patched_maps,
    aten.view: reshape_patch_channels,
    aten._unsafe_view: reshape_patch_channels,
    aten.reshape: reshape_patch_channels,
    aten.select: rearrange_patch_channels,
    aten.unbind: rearrange_patch_channels,
    aten.unsqueeze: rearrange_patch_channels,
}

# Rules for maps whose axes the network has permuted, too.
LAYOUT_RULES: dict[Any, PatchRule] = {
    aten.clone: copy_patches,
    aten.detach: copy_patches,
    aten.alias: copy_patches,
    aten.permute: permute_patched_maps,
    aten.transpose: transpose_patched_maps,
    aten.slice: rearrange_patch_channels,
    aten.split: rearrange_patch_channels,
    aten.split_with_sizes: rearrange_patch_channels,
    aten.linear: apply_linear_to_patches,
    aten.native_layer_norm: layer_normalize_patches,
    aten.mean: lambda call: average_patched_maps(call, call.get_argument(1, "dim")),
}


def apply_patch_rule(call: PatchedCall) -> PatchRuleResult:
    """The result of a call on patches; None where there is no rule for it."""
    operation = call.func.overloadpacket
    rule = LAYOUT_RULES.get(operation) or PLAIN_RULES.get(operation)
    if rule is not None:
        is_only_operand = len(call.patched_maps) == 1 and isinstance(call.args[0], PatchedMaps)
        if not is_only_operand:
            return None
        has_usual_axes = call.operand.axes is None
        return rule(call) if has_usual_axes or operation in LAYOUT_RULES else None
    if operation is aten.cat:
        return concatenate_patches(call)
    if is_pointwise(call.func):
        return apply_pointwise_to_patches(call)
    return None


@cache
def is_pointwise(func: Any) -> bool:
    """Whether an operation is a function of single elements."""
    return torch.Tag.pointwise in func.tags or func.overloadpacket in UNTAGGED_POINTWISE
