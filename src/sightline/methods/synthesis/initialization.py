"""What a synthesis begins with: gray, noise, a photograph or a mean of some, a spectrum, its phases, a generator's code, transparency."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce

import torch
from torch import Tensor

from sightline.generators.architectures.decoder import load_code_generator
from sightline.generators.latent import GeneratorCode
from sightline.images.plotting.maps import make_contact_sheet
from sightline.images.transforms import (
    Transform,
    make_center_bias,
    make_random_affine,
    make_random_crops,
)
from sightline.methods.synthesis.presets import SynthesisPreset
from sightline.models.model import Model
from sightline.optim.optimizers import Adam, FixedGainDescent, OptimizerFactory, SteepestDescent
from sightline.optim.parameterizations.fourier import (
    FourierPhase,
    FourierSpectrum,
    Parameterization,
    Pixels,
)
from sightline.optim.parameterizations.transparency import TransparentImage
from sightline.optim.regularization import Regularizer
from sightline.registry.progress import Callback, Step

SynthesisStart = tuple[Parameterization, Callable[[int], None] | None]


@dataclass(frozen=True)
class PictureSpec:
    """How many pictures of which side in pixels, from which seed, and whether all of them begin alike."""

    side: int
    count: int
    seed: int
    same_start: bool


def make_synthesis_start(
    model: Model,
    preset: SynthesisPreset,
    spec: PictureSpec,
    picture: Tensor | None,
    generator: torch.Generator,
) -> SynthesisStart:
    """What is optimized, with the same start for every unit or one each, and what is done to it after each step.

    `picture`, count×3×side×side, is what it begins from; None for nothing.
    """
    if preset.start == "generator":
        code = GeneratorCode(
            load_code_generator().to(model.device),
            spec.count,
            spec.side,
            seed=spec.seed,
            shared_start=spec.same_start,
        )
        return code, lambda _: code.decay_to_mean_(preset.decay)
    if not preset.is_pixel_based:
        colors = (
            make_phase_start(model, spec)
            if preset.start == "phase"
            else make_fourier_start(model, preset, spec, picture)
        )
        return (
            make_transparent_start(model, colors, spec) if preset.focus == "alpha" else colors
        ), None
    pixels = Pixels(
        (make_gray_start(preset, spec, generator) if picture is None else picture).to(model.device)
    )
    keep = Regularizer(preset.decay, preset.sigma, preset.blur_every, preset.small, preset.idle)
    return pixels, lambda index: keep.regularize_pixels_(pixels, index)


def make_phase_start(model: Model, spec: PictureSpec) -> FourierPhase:
    """Random phases with the amplitudes of photographs."""
    return FourierPhase(
        spec.count,
        spec.side,
        spec.side,
        seed=spec.seed,
        shared_start=spec.same_start,
        device=model.device,
    )


def make_transparent_start(
    model: Model, colors: Parameterization, spec: PictureSpec
) -> TransparentImage:
    """Colours with transparency."""
    return TransparentImage(
        colors, spec.count, spec.side, spec.side, seed=spec.seed, device=model.device
    )


def make_fourier_start(
    model: Model, preset: SynthesisPreset, spec: PictureSpec, picture: Tensor | None
) -> FourierSpectrum:
    """A spectrum from nothing or of a picture."""
    return FourierSpectrum(
        spec.count,
        spec.side,
        spec.side,
        seed=spec.seed,
        shared_start=spec.same_start,
        image=picture,
        frequency_exponent=preset.slope,
        device=model.device,
    )


def make_gray_start(
    preset: SynthesisPreset, spec: PictureSpec, generator: torch.Generator
) -> Tensor:
    """Gray or black with the preset's noise."""
    level = 0.0 if preset.start == "zero" else 0.5
    noise = torch.randn(
        1 if spec.same_start else spec.count, 3, spec.side, spec.side, generator=generator
    )
    return (level + preset.noise * noise).clamp(0, 1).expand(spec.count, -1, -1, -1)


def make_synthesis_optimizer(preset: SynthesisPreset) -> OptimizerFactory:
    """The preset's optimizer."""
    if preset.optimizer == "mean":
        return partial(SteepestDescent, lr=preset.lr, norm="mean")
    if preset.optimizer == "gain":
        return partial(FixedGainDescent, max_rate=preset.lr, gain=preset.gain)
    return partial(Adam, lr=preset.lr, nesterov=preset.optimizer == "nadam")


def build_view_transforms(
    preset: SynthesisPreset, side: int, steps: int, generator: torch.Generator
) -> list[Transform]:
    """What stands between picture and network, one after the other."""
    first = [make_center_bias(steps)] if preset.focus == "center" else []
    if preset.crop_count:
        return [
            *first,
            make_random_crops(preset.crop_count, preset.crop_range, preset.crop_noise, generator),
        ]
    if preset.warp_shift or preset.warp_scale or preset.warp_angle:
        return [
            *first,
            make_random_affine(
                preset.warp_shift * side,
                preset.warp_scale,
                preset.warp_angle,
                generator,
                same_for_batch=True,
            ),
        ]
    return first


def chain_view_transforms(transforms: Sequence[Transform]) -> Transform | None:
    """Transforms one after the other; None for none."""
    return (
        (lambda image: reduce(lambda seen, view: view(seen), transforms, image))
        if transforms
        else None
    )


class MovieRecorder:
    """The caller's callback, and the frames of a movie."""

    def __init__(self, callback: Callback | None, frame_interval: int, keep_frames: bool) -> None:
        self.callback, self.frame_interval, self.keep_frames = callback, frame_interval, keep_frames
        self.frames: list[Tensor] = []

    def __call__(self, step: Step) -> bool:
        """Keeps every so many pictures, and asks whether to stop."""
        if self.keep_frames and (step.index - 1) % self.frame_interval == 0:
            self.frames.append(make_contact_sheet(step.image.cpu().clamp(0, 1)))
        return bool(self.callback and self.callback(step))
