"""The progress event of iterative methods, and its callback."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Step:
    """The progress event of every iterative method.

    `index` counts the steps done, from 1 to `total`. `scores` are N numbers, one for each image,
    and `image` is N×3×H×W in [0, 1], as it was before this step.
    """

    index: int
    total: int
    scores: Tensor
    image: Tensor


# Called after every step. Returning True stops the run; what was made so far is kept.
Callback = Callable[[Step], bool | None]


class MultiRunCallback:
    """The callback of one run among several, which counts its steps as part of all runs together.

    `stopped` says whether the last call stopped the run.
    """

    def __init__(self, callback: Callback | None, run_index: int, run_count: int) -> None:
        self.callback = callback
        self.run_index = run_index
        self.run_count = run_count
        self.stopped = False

    def __call__(self, step: Step) -> bool:
        if self.callback is None:
            return False
        overall_step = Step(
            index=self.run_index * step.total + step.index,
            total=self.run_count * step.total,
            scores=step.scores,
            image=step.image,
        )
        self.stopped = bool(self.callback(overall_step))
        return self.stopped
