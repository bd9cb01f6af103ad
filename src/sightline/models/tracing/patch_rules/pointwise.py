"""Rules for what treats every position by itself, alone or together with its channels."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sightline.models.tracing.patch_rules.intervals import ChangedRegions
from sightline.models.tracing.patch_rules.patches import (
    PatchedCall,
    PatchedMaps,
    PatchRuleResult,
)

aten: Any = torch.ops.aten


# ── functions of the elements ──


def apply_pointwise_to_patches(call: PatchedCall) -> PatchedMaps | None:
    """Functions of the elements at one position; constants must be the same at all positions."""
    inputs = call.patched_maps
    if not are_alike(inputs) or not has_uniform_constants(call, inputs[0]):
        return None
    return call.make_patched_maps(
        unite_changed_regions(inputs),
        lambda regions: call.run_operation(lambda maps: maps.cut_regions(regions)),
    )


def are_alike(inputs: Sequence[PatchedMaps]) -> bool:
    """Whether all maps have the same size, number of axes and order of axes."""
    first = inputs[0]
    return all(
        maps.map_size == first.map_size
        and maps.clean_map.tensor.ndim == first.clean_map.tensor.ndim
        and maps.axes == first.axes
        for maps in inputs
    )


def has_uniform_constants(call: PatchedCall, maps: PatchedMaps) -> bool:
    """Whether all constants are the same in each image of the batch and at all positions."""
    ndim = maps.clean_map.tensor.ndim
    for value in (*call.args, *call.kwargs.values()):
        if not isinstance(value, Tensor):
            continue
        if value.ndim > ndim:
            return False
        # What broadcasting puts in front.
        sizes = [1] * (ndim - value.ndim) + list(value.shape)
        if any(sizes[dim] != 1 for dim in (0, *maps.position_dims)):
            return False
    return True


def unite_changed_regions(inputs: Sequence[PatchedMaps]) -> ChangedRegions:
    """What any of the inputs changes; the regions themselves where they are the same object."""
    regions = inputs[0].regions
    for maps in inputs[1:]:
        if maps.regions is not regions:
            regions = regions | maps.regions
    return regions


# ── functions of the channels ──


def concatenate_patches(call: PatchedCall) -> PatchedMaps | None:
    """aten.cat(tensors, dim) along channels."""
    inputs = call.args[0]
    if not all(isinstance(maps, PatchedMaps) for maps in inputs):
        return None
    if not are_alike(inputs) or not inputs[0].is_channel_dim(call.get_argument(1, "dim", 0)):
        return None
    return call.make_patched_maps(
        unite_changed_regions(inputs),
        lambda regions: call.run_operation(lambda maps: maps.cut_regions(regions)),
    )


def batch_normalize_patches(call: PatchedCall) -> PatchRuleResult:
    """aten.native_batch_norm(input, weight, bias, mean, variance, training, momentum, eps).

    Only with the running statistics.
    """
    never_trains = call.func.overloadpacket is aten._native_batch_norm_legit_no_training
    uses_batch_statistics = call.args[5] and not never_trains
    if uses_batch_statistics or call.operand.clean_map.tensor.ndim != 4:
        return None

    def normalize(regions: ChangedRegions) -> Tensor:
        return call.func(call.operand.cut_regions(regions), *call.args[1:])[0]

    return call.make_patched_maps(call.operand.regions, normalize), None, None


def layer_normalize_patches(call: PatchedCall) -> PatchRuleResult:
    """aten.native_layer_norm(input, normalized_shape, weight, bias, eps) over channels."""
    maps = call.operand
    normalized_dims = range(-len(call.args[1]), 0)
    if not all(maps.is_channel_dim(dim) for dim in normalized_dims):
        return None

    def normalize(regions: ChangedRegions) -> Tensor:
        return call.run_operation(lambda maps: maps.cut_regions(regions))[0]

    return call.make_patched_maps(maps.regions, normalize), None, None


def apply_linear_to_patches(call: PatchedCall) -> PatchedMaps | None:
    """aten.linear(input, weight, bias) of the channels, which must be the last axis."""
    maps = call.operand
    if not maps.is_channel_dim(-1):
        return None
    return call.make_patched_maps(
        maps.regions, lambda regions: call.run_operation(lambda maps: maps.cut_regions(regions))
    )
