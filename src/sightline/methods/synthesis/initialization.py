"""How a synthesis begins: what is optimized, from where, by which optimizer, under which views."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sightline.errors import SightlineError
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
from sightline.models.network.preprocessing import convert_to_luminance
from sightline.optim.optimizers import Adam, FixedGainDescent, OptimizerFactory, SteepestDescent
from sightline.optim.parameterizations.fourier import (
    FourierPhase,
    FourierSpectrum,
    Parameterization,
    Pixels,
)
from sightline.optim.parameterizations.gray import GrayImage
from sightline.optim.parameterizations.transparency import TransparentImage
from sightline.optim.regularization import Regularizer
from sightline.registry.progress import Callback, Step

# What is optimized, and what is done to it after each step.
SynthesisStart = tuple[Parameterization, Callable[[int], None] | None]


@dataclass(frozen=True)
class PictureSpec:
    """The images of a synthesis.

    Attributes:
        size: height and width in pixels.
        count: how many.
        seed: of what is random at the start.
        same_start: whether all start alike.
        channels: that are optimized: 1 for gray images of three equal channels.
    """

    size: tuple[int, int]
    count: int
    seed: int
    same_start: bool
    channels: int = 3


def make_synthesis_start(
    model: Model,
    preset: SynthesisPreset,
    spec: PictureSpec,
    picture: Tensor | None,
    generator: torch.Generator,
) -> SynthesisStart:
    """The parameterization, and the regularization that runs after each step.

    `picture`, count×C×H×W, is the image to start from; None to start from nothing. Raises
    SightlineError for a generator or phases where the network takes no colour pictures.
    """

    def show_gray(levels: Parameterization) -> Parameterization:
        return GrayImage(levels) if model.is_gray else levels

    if picture is not None and model.is_gray:
        picture = convert_to_luminance(picture)
    if preset.start == "generator":
        code = make_generator_start(model, spec)
        return show_gray(code), lambda _: code.decay_to_mean_(preset.decay)

    if preset.is_pixel_based:
        if picture is None:
            picture = make_gray_start(preset, spec, generator)
        pixels = Pixels(picture.to(model.device))
        regularizer = Regularizer(
            preset.decay, preset.sigma, preset.blur_every, preset.small, preset.idle
        )
        return show_gray(pixels), lambda index: regularizer.regularize_pixels_(pixels, index)

    if preset.start == "phase":
        colors = show_gray(make_phase_start(model, spec))
    else:
        colors = show_gray(make_fourier_start(model, preset, spec, picture))
    if preset.focus == "alpha":
        return make_transparent_start(model, colors, spec), None
    return colors, None


def make_generator_start(model: Model, spec: PictureSpec) -> GeneratorCode:
    """The code from which a generator paints a picture.

    Raises SightlineError for images of other channels, and for images that are not square.
    """
    height, width = spec.size
    if model.channels != 3 or height != width:
        raise SightlineError(
            f"the generator paints square pictures; {model.name} takes {model.channels} channels "
            f"of {height}×{width}: choose another start, such as fourier"
        )
    return GeneratorCode(
        load_code_generator().to(model.device),
        spec.count,
        height,
        seed=spec.seed,
        shared_start=spec.same_start,
    )


def make_phase_start(model: Model, spec: PictureSpec) -> FourierPhase:
    """Random phases with the amplitudes of photographs."""
    return FourierPhase(
        spec.count,
        *spec.size,
        seed=spec.seed,
        shared_start=spec.same_start,
        channels=spec.channels,
        device=model.device,
    )


def make_transparent_start(
    model: Model, colors: Parameterization, spec: PictureSpec
) -> TransparentImage:
    """Colours with an opacity that is optimized too."""
    return TransparentImage(
        colors,
        spec.count,
        *spec.size,
        seed=spec.seed,
        channels=spec.channels,
        device=model.device,
    )


def make_fourier_start(
    model: Model, preset: SynthesisPreset, spec: PictureSpec, picture: Tensor | None
) -> FourierSpectrum:
    """A spectrum: random and faint, or that of an image."""
    return FourierSpectrum(
        spec.count,
        *spec.size,
        seed=spec.seed,
        shared_start=spec.same_start,
        image=picture,
        frequency_exponent=preset.slope,
        channels=spec.channels,
        device=model.device,
    )


def make_gray_start(
    preset: SynthesisPreset, spec: PictureSpec, generator: torch.Generator
) -> Tensor:
    """Gray or black images with the preset's noise, count×channels×H×W."""
    level = 0.0 if preset.start == "zero" else 0.5
    noise_count = 1 if spec.same_start else spec.count
    shape = (noise_count, spec.channels, *spec.size)
    noise = torch.randn(shape, generator=generator, dtype=torch.float32)
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
    """A callback that keeps every `frame_interval`-th image for a movie, and calls the caller's.

    `show_picture` gives what a picture shows of an image.
    """

    def __init__(
        self,
        callback: Callback | None,
        frame_interval: int,
        keep_frames: bool,
        show_picture: Callable[[Tensor], Tensor],
    ) -> None:
        self.callback = callback
        self.show_picture = show_picture
        self.frame_interval = frame_interval
        self.keep_frames = keep_frames
        self.frames: list[Tensor] = []

    def __call__(self, step: Step) -> bool:
        """Whether the caller wants to stop."""
        if self.keep_frames and (step.index - 1) % self.frame_interval == 0:
            picture = self.show_picture(step.image.cpu().clamp(0, 1))
            self.frames.append(make_contact_sheet(picture))
        return bool(self.callback and self.callback(step))
