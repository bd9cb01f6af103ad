"""The one progress event of every optimization, and its callback."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Step:
    """The progress event of every iterative method: steps done, steps in all, scores N, the image N×3×H×W before this step."""

    index: int
    total: int
    scores: Tensor
    image: Tensor


Callback = Callable[[Step], bool | None]


class MultiRunCallback:
    """Counts the steps of one run of several as part of them all, and notes whether it was stopped."""

    def __init__(self, callback: Callback | None, run_index: int, run_count: int) -> None:
        self.callback, self.run_index, self.run_count, self.stopped = (
            callback,
            run_index,
            run_count,
            False,
        )

    def __call__(self, step: Step) -> bool:
        told = Step(
            self.run_index * step.total + step.index,
            self.run_count * step.total,
            step.scores,
            step.image,
        )
        self.stopped = bool(self.callback and self.callback(told))
        return self.stopped
