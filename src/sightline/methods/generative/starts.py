"""What a synthesis begins with: gray, noise, a photograph or a mean of some, a spectrum, its phases, a generator's code, transparency."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...model import Model
from ...networks.decoder import composer
from ...parameterize import Code, Fourier, Parameterization, Phase, Pixels
from ...regularize import Regularizer
from ...veil import Veiled
from .presets import Preset

Start = tuple[Parameterization, Callable[[int], None] | None]


@dataclass(frozen=True)
class Canvas:
    """How many pictures of which side in pixels, from which seed, and whether all of them begin alike."""

    side: int
    count: int
    seed: int
    alike: bool


def beginning(model: Model, preset: Preset, canvas: Canvas, picture: Tensor | None, generator: torch.Generator) -> Start:
    """What is optimized, with the same start for every unit or one each, and what is done to it after each step.

    `picture`, count×3×side×side, is what it begins from; None for nothing.
    """
    if preset.start == "generator":
        code = Code(composer().to(model.device), canvas.count, canvas.side, seed=canvas.seed, alike=canvas.alike)
        return code, lambda _: code.decay_(preset.decay)
    if not preset.of_pixels:
        colors = phases(model, canvas) if preset.start == "phase" else spectral(model, preset, canvas, picture)
        return (veiled(model, colors, canvas) if preset.focus == "alpha" else colors), None
    pixels = Pixels((gray(preset, canvas, generator) if picture is None else picture).to(model.device))
    keep = Regularizer(preset.decay, preset.sigma, preset.every, preset.small, preset.idle)
    return pixels, lambda index: keep.apply_(pixels, index)


def phases(model: Model, canvas: Canvas) -> Phase:
    """Random phases with the amplitudes of photographs."""
    return Phase(canvas.count, canvas.side, canvas.side, seed=canvas.seed, alike=canvas.alike, device=model.device)


def veiled(model: Model, colors: Parameterization, canvas: Canvas) -> Veiled:
    """Colours with transparency."""
    return Veiled(colors, canvas.count, canvas.side, canvas.side, seed=canvas.seed, device=model.device)


def spectral(model: Model, preset: Preset, canvas: Canvas, picture: Tensor | None) -> Fourier:
    """A spectrum from nothing or of a picture."""
    return Fourier(
        canvas.count, canvas.side, canvas.side, seed=canvas.seed, alike=canvas.alike, image=picture, slope=preset.slope, device=model.device
    )


def gray(preset: Preset, canvas: Canvas, generator: torch.Generator) -> Tensor:
    """Gray or black with the preset's noise."""
    level = 0.0 if preset.start == "zero" else 0.5
    noise = torch.randn(1 if canvas.alike else canvas.count, 3, canvas.side, canvas.side, generator=generator)
    return (level + preset.noise * noise).clamp(0, 1).expand(canvas.count, -1, -1, -1)
