"""Undoing the last batch of what is kept of the units."""

from typing import Any

import torch
from torch import Tensor


class ChangeJournal:
    """Changes tensors in place and remembers what was there before.

    A batch changes few entries, so remembering them costs much less than a copy of all.
    """

    def __init__(self) -> None:
        self._changes: list[tuple[Tensor, Any, Tensor]] = []

    def forget_changes(self) -> None:
        """Makes what has been changed so far permanent."""
        self._changes.clear()

    def assign(self, tensor: Tensor, index: Any, values: Tensor) -> None:
        """Does `tensor[index] = values`. The tensor may be a view of a larger one."""
        previous_values = tensor[index]
        # An index of a tensor or a list gives a copy, a slice a view.
        if previous_values.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr():
            previous_values = previous_values.clone()
        self._changes.append((tensor, index, previous_values))
        tensor[index] = values

    def undo_changes(self) -> None:
        """Puts back what was there before, the last change first."""
        with torch.inference_mode():
            for tensor, index, previous_values in reversed(self._changes):
                tensor[index] = previous_values
        self._changes.clear()
