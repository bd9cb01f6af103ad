"""How a synthesis begins: what is optimized, from where, by which optimizer, under which views."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

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

# What is optimized, and what is done to it after each step.
SynthesisStart = tuple[Parameterization, Callable[[int], None] | None]


@dataclass(frozen=True)
class PictureSpec:
    """The images of a synthesis: `count` squares of `side` pixels, and whether all start alike."""

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
    """The parameterization, and the regularization that runs after each step.

    `picture`, count×3×side×side, is the image to start from; None to start from nothing.
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

    if preset.is_pixel_based:
        if picture is None:
            picture = make_gray_start(preset, spec, generator)
        pixels = Pixels(picture.to(model.device))
        regularizer = Regularizer(
            preset.decay, preset.sigma, preset.blur_every, preset.small, preset.idle
        )
        return pixels, lambda index: regularizer.regularize_pixels_(pixels, index)

    if preset.start == "phase":
        colors = make_phase_start(model, spec)
    else:
        colors = make_fourier_start(model, preset, spec, picture)
    if preset.focus == "alpha":
        return make_transparent_start(model, colors, spec), None
    return colors, None


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
    """Colours with an opacity that is optimized too."""
    return TransparentImage(
        colors, spec.count, spec.side, spec.side, seed=spec.seed, device=model.device
    )


def make_fourier_start(
    model: Model, preset: SynthesisPreset, spec: PictureSpec, picture: Tensor | None
) -> FourierSpectrum:
    """A spectrum: random and faint, or that of an image."""
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
    """Gray or black images with the preset's noise, count×3×side×side."""
    level = 0.0 if preset.start == "zero" else 0.5
    noise_count = 1 if spec.same_start else spec.count
    noise = torch.randn(noise_count, 3, spec.side, spec.side, generator=generator)
    start = (level + preset.noise * noise).clamp(0, 1)
    return start.expand(spec.count, -1, -1, -1)


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
    """The transforms between the image and the network, in order."""
    transforms: list[Transform] = []
    if preset.focus == "center":
        transforms.append(make_center_bias(steps))
    if preset.crop_count:
        crops = make_random_crops(
            preset.crop_count, preset.crop_range, preset.crop_noise, generator
        )
        transforms.append(crops)
    elif preset.warp_shift or preset.warp_scale or preset.warp_angle:
        warp = make_random_affine(
            preset.warp_shift * side,
            preset.warp_scale,
            preset.warp_angle,
            generator,
            same_for_batch=True,
        )
        transforms.append(warp)
    return transforms


def chain_view_transforms(transforms: Sequence[Transform]) -> Transform | None:
    """One transform that applies all in order; None for none."""
    if not transforms:
        return None

    def apply_all(image: Tensor) -> Tensor:
        for transform in transforms:
            image = transform(image)
        return image

    return apply_all


class MovieRecorder:
    """A callback that keeps every `frame_interval`-th image for a movie, and calls the caller's."""

    def __init__(self, callback: Callback | None, frame_interval: int, keep_frames: bool) -> None:
        self.callback = callback
        self.frame_interval = frame_interval
        self.keep_frames = keep_frames
        self.frames: list[Tensor] = []

    def __call__(self, step: Step) -> bool:
        """Whether the caller wants to stop."""
        if self.keep_frames and (step.index - 1) % self.frame_interval == 0:
            self.frames.append(make_contact_sheet(step.image.cpu().clamp(0, 1)))
        return bool(self.callback and self.callback(step))
