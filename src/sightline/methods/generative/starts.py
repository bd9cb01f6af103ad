"""What a synthesis begins with: gray, noise, a photograph or a mean of some, a spectrum, its phases, a generator's code, transparency."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...model import Model
from ...networks.decoder import load_code_generator
from ...parameterize import FourierPhase, FourierSpectrum, GeneratorCode, Parameterization, Pixels
from ...regularize import Regularizer
from ...veil import TransparentImage
from .presets import SynthesisPreset

SynthesisStart = tuple[Parameterization, Callable[[int], None] | None]


@dataclass(frozen=True)
class PictureSpec:
    """How many pictures of which side in pixels, from which seed, and whether all of them begin alike."""

    side: int
    count: int
    seed: int
    same_start: bool


def make_synthesis_start(
    model: Model, preset: SynthesisPreset, spec: PictureSpec, picture: Tensor | None, generator: torch.Generator
) -> SynthesisStart:
    """What is optimized, with the same start for every unit or one each, and what is done to it after each step.

    `picture`, count×3×side×side, is what it begins from; None for nothing.
    """
    if preset.start == "generator":
        code = GeneratorCode(load_code_generator().to(model.device), spec.count, spec.side, seed=spec.seed, shared_start=spec.same_start)
        return code, lambda _: code.decay_to_mean_(preset.decay)
    if not preset.is_pixel_based:
        colors = make_phase_start(model, spec) if preset.start == "phase" else make_fourier_start(model, preset, spec, picture)
        return (make_transparent_start(model, colors, spec) if preset.focus == "alpha" else colors), None
    pixels = Pixels((make_gray_start(preset, spec, generator) if picture is None else picture).to(model.device))
    keep = Regularizer(preset.decay, preset.sigma, preset.blur_every, preset.small, preset.idle)
    return pixels, lambda index: keep.regularize_pixels_(pixels, index)


def make_phase_start(model: Model, spec: PictureSpec) -> FourierPhase:
    """Random phases with the amplitudes of photographs."""
    return FourierPhase(spec.count, spec.side, spec.side, seed=spec.seed, shared_start=spec.same_start, device=model.device)


def make_transparent_start(model: Model, colors: Parameterization, spec: PictureSpec) -> TransparentImage:
    """Colours with transparency."""
    return TransparentImage(colors, spec.count, spec.side, spec.side, seed=spec.seed, device=model.device)


def make_fourier_start(model: Model, preset: SynthesisPreset, spec: PictureSpec, picture: Tensor | None) -> FourierSpectrum:
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


def make_gray_start(preset: SynthesisPreset, spec: PictureSpec, generator: torch.Generator) -> Tensor:
    """Gray or black with the preset's noise."""
    level = 0.0 if preset.start == "zero" else 0.5
    noise = torch.randn(1 if spec.same_start else spec.count, 3, spec.side, spec.side, generator=generator)
    return (level + preset.noise * noise).clamp(0, 1).expand(spec.count, -1, -1, -1)
