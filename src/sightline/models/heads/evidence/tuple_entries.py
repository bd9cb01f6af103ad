"""Which value of a plain tuple or list holds the scores."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from sightline.models.heads.evidence.autograd_graph import (
    PICKING_OPERATIONS,
    has_graph,
    list_names_between,
)


def choose_tuple_entry(entries: Sequence[Any]) -> int:
    """Which entry of a plain tuple or list holds the scores: 0, or that made from entry 0.

    Networks return their features beside their scores, in either order. Features are what another
    entry is computed from that has another shape. A softmax has the same shape as its scores. What
    is computed without weights is often only told of the scores: an entropy, a norm, the logarithm
    of a determinant, the highest of them, their differences. A loss is no features.
    """
    if not entries or not has_graph(entries[0]) or entries[0].ndim == 0:
        return 0
    features: Tensor = entries[0]
    for number, entry in enumerate(entries[1:], start=1):
        is_other = has_graph(entry) and entry.ndim > 0 and entry.shape != features.shape
        if is_other and is_computed_from(entry, features) and not _is_told_of(entry, features):
            return number
    return 0


def count_rival_entries(entries: Sequence[Any]) -> int:
    """How many entries of a plain tuple or list might be the scores just as well as the first.

    They have its shape, or are maps of as many channels, and are the scores of other depths, heads
    or steps: not computed from it, or by weights.
    """
    if not entries or not has_graph(entries[0]):
        return 0
    rivals = 0
    for entry in entries[1:]:
        if has_graph(entry) and _is_alike(entry, entries[0]):
            is_separate = not is_computed_from(entry, entries[0])
            rivals += is_separate or list_names_between(entry, entries[0])[1]
    return rivals


def is_computed_from(output: Tensor, features: Tensor) -> bool:
    """Whether an output changes with features, by autograd's graph."""
    gradients = torch.autograd.grad(output.sum(), features, retain_graph=True, allow_unused=True)
    return cast(Tensor | None, gradients[0]) is not None


def _is_alike(entry: Tensor, first: Tensor) -> bool:
    """Whether two outputs have one shape, or are maps N×C×H×W of as many channels."""
    are_maps = entry.ndim == 4 and first.ndim == 4
    return entry.shape == first.shape or (are_maps and entry.shape[:2] == first.shape[:2])


def _is_told_of(entry: Tensor, scores: Tensor) -> bool:
    """Whether an entry is no more than a statement about scores, made without weights."""
    names, has_weights = list_names_between(entry, scores)
    if has_weights:
        return False
    is_single_number = entry.numel() <= len(scores)
    is_picked = any(PICKING_OPERATIONS.match(name) for name in names)
    return is_single_number or is_picked or entry.ndim > scores.ndim
