"""Maps with a patch each, and a rule's result against the operation on the whole maps."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.models.tracing.patch_rules.intervals import ChangedIntervals, ChangedRegions
from sightline.models.tracing.patch_rules.patches import (
    CleanMap,
    OperationRecord,
    PatchedCall,
    PatchedMaps,
    replace_instances,
)

HEIGHT, WIDTH = 14, 17
TOPS = (0, 5, 10, 3)
LEFTS = (2, 0, 14, 7)
COUNT = len(TOPS)


def make_patched_maps(
    channels: int = 6, seed: int = 0, axes: tuple[int, ...] | None = None
) -> PatchedMaps:
    """Maps of one clean map with patches of 4×3 positions, which touch all edges."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randn(1, channels, HEIGHT, WIDTH, generator=generator)
    patches = torch.randn(COUNT, channels, 4, 3, generator=generator)
    regions = ChangedRegions(
        ChangedIntervals(np.array(TOPS), np.full(COUNT, 4), HEIGHT),
        ChangedIntervals(np.array(LEFTS), np.full(COUNT, 3), WIDTH),
    )
    return PatchedMaps(CleanMap(clean), regions, patches, axes)


def paste_patches(maps: PatchedMaps) -> Tensor:
    """The whole maps N×…×H×W, pasted one by one."""
    clean = maps.clean_map.tensor
    whole = clean.repeat(COUNT, *[1] * (clean.ndim - 1))
    assert maps.patches is not None
    height, width = maps.patches.shape[-2:]
    for image, patch, top, left in zip(
        whole,
        maps.patches,
        maps.regions.rows.start.tolist(),
        maps.regions.cols.start.tolist(),
        strict=True,
    ):
        image[..., top : top + height, left : left + width] = patch
    return whole


def make_call(func: Any, *args: Any, survey: bool = False, **kwargs: Any) -> PatchedCall:
    return PatchedCall(func, args, kwargs, OperationRecord(0), COUNT, survey)


def compute_whole(call: PatchedCall) -> Any:
    """The operation on whole maps, as the network sees them."""

    def lay_out(maps: PatchedMaps) -> Tensor:
        return maps.lay_out(paste_patches(maps))

    args = replace_instances(call.args, PatchedMaps, lay_out)
    kwargs = replace_instances(dict(call.kwargs), PatchedMaps, lay_out)
    return call.func(*args, **kwargs)


def list_results(result: Any) -> list[Any]:
    return list(result) if isinstance(result, (tuple, list)) else [result]


def assert_rule_is_exact(rule: Callable[[PatchedCall], Any], call: PatchedCall) -> None:
    """What the rule gives is what the operation gives for the whole maps; a survey its regions."""
    result = rule(call)
    assert result is not None, "the rule gives up"
    survey = rule(PatchedCall(call.func, call.args, call.kwargs, OperationRecord(0), COUNT, True))
    wholes = list_results(compute_whole(call))
    patched_count = 0
    for value, surveyed, whole in zip(
        list_results(result), list_results(survey), wholes, strict=False
    ):
        if value is None:  # must not be used
            continue
        if isinstance(value, Tensor):
            torch.testing.assert_close(value, whole, rtol=1e-4, atol=1e-5)
            continue
        patched_count += 1
        torch.testing.assert_close(value.lay_out(paste_patches(value)), whole, rtol=1e-4, atol=1e-5)
        assert value.patches.numel() < whole.numel()
        assert surveyed.patches is None
        equal = surveyed.regions.equalize_sizes()
        assert (equal.rows, equal.cols) == (value.regions.rows, value.regions.cols)
    assert patched_count or isinstance(result, Tensor)
