"""How a synthesis runs: what moves it, what stands between picture and network, what is kept on the way."""

from collections.abc import Sequence
from functools import partial, reduce

import torch
from torch import Tensor

from ... import render
from ...ascend import Callback, Step
from ...optimizers import Adam, FixedGainDescent, OptimizerFactory, SteepestDescent
from ...transform import Transform, make_center_bias, make_random_affine, make_random_crops
from .presets import SynthesisPreset


def make_synthesis_optimizer(preset: SynthesisPreset) -> OptimizerFactory:
    """The preset's optimizer."""
    if preset.optimizer == "mean":
        return partial(SteepestDescent, lr=preset.lr, norm="mean")
    if preset.optimizer == "gain":
        return partial(FixedGainDescent, max_rate=preset.lr, gain=preset.gain)
    return partial(Adam, lr=preset.lr, nesterov=preset.optimizer == "nadam")


def build_view_transforms(preset: SynthesisPreset, side: int, steps: int, generator: torch.Generator) -> list[Transform]:
    """What stands between picture and network, one after the other."""
    first = [make_center_bias(steps)] if preset.focus == "center" else []
    if preset.crop_count:
        return [*first, make_random_crops(preset.crop_count, preset.crop_range, preset.crop_noise, generator)]
    if preset.warp_shift or preset.warp_scale or preset.warp_angle:
        return [*first, make_random_affine(preset.warp_shift * side, preset.warp_scale, preset.warp_angle, generator, same_for_batch=True)]
    return first


def chain_view_transforms(transforms: Sequence[Transform]) -> Transform | None:
    """Transforms one after the other; None for none."""
    return (lambda image: reduce(lambda seen, view: view(seen), transforms, image)) if transforms else None


class MovieRecorder:
    """The caller's callback, and the frames of a movie."""

    def __init__(self, callback: Callback | None, frame_interval: int, keep_frames: bool) -> None:
        self.callback, self.frame_interval, self.keep_frames = callback, frame_interval, keep_frames
        self.frames: list[Tensor] = []

    def __call__(self, step: Step) -> bool:
        """Keeps every so many pictures, and asks whether to stop."""
        if self.keep_frames and (step.index - 1) % self.frame_interval == 0:
            self.frames.append(render.make_contact_sheet(step.image.cpu().clamp(0, 1)))
        return bool(self.callback and self.callback(step))
