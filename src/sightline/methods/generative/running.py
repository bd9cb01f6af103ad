"""How a synthesis runs: what moves it, what stands between picture and network, what is kept on the way."""

from collections.abc import Sequence
from functools import partial, reduce

import torch
from torch import Tensor

from ... import render
from ...ascend import Callback, Step
from ...optimizers import Adam, Gain, Optimizing, Steepest
from ...transform import Transform, crops, middle_first, wobble
from .presets import Preset


def moving(preset: Preset) -> Optimizing:
    """The preset's optimizer."""
    if preset.move == "mean":
        return partial(Steepest, lr=preset.lr, norm="mean")
    if preset.move == "gain":
        return partial(Gain, most=preset.lr, gain=preset.gain)
    return partial(Adam, lr=preset.lr, nesterov=preset.move == "nadam")


def view(preset: Preset, side: int, steps: int, generator: torch.Generator) -> list[Transform]:
    """What stands between picture and network, one after the other."""
    first = [middle_first(steps)] if preset.focus == "center" else []
    if preset.crops:
        return [*first, crops(preset.crops, preset.box, preset.grain, generator)]
    if preset.shift or preset.scale or preset.angle:
        return [*first, wobble(preset.shift * side, preset.scale, preset.angle, generator, alike=True)]
    return first


def through(views: Sequence[Transform]) -> Transform | None:
    """Transforms one after the other; None for none."""
    return (lambda image: reduce(lambda seen, view: view(seen), views, image)) if views else None


class Watch:
    """The caller's callback, and the frames of a movie."""

    def __init__(self, callback: Callback | None, every: int, keep: bool) -> None:
        self.callback, self.every, self.keep = callback, every, keep
        self.frames: list[Tensor] = []

    def __call__(self, step: Step) -> bool:
        """Keeps every so many pictures, and asks whether to stop."""
        if self.keep and (step.index - 1) % self.every == 0:
            self.frames.append(render.sheet(step.image.cpu().clamp(0, 1)))
        return bool(self.callback and self.callback(step))
