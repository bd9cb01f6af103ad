"""Presets of gradient ascent: each published recipe as one frozen value, with its source."""

import math
from dataclasses import dataclass
from typing import Literal

SynthesisPresetName = Literal[
    "auto",
    "smooth",
    "lecture",
    "yosinski",
    "yosinski-small",
    "yosinski-decay",
    "yosinski-idle",
    "olah",
    "maco",
    "accentuation",
    "facets",
    "generator",
]

StartKind = Literal["gray", "zero", "fourier", "phase", "photo", "facets", "generator"]

FocusKind = Literal["whole", "center", "alpha"]


@dataclass(frozen=True)
class SynthesisPreset:
    """A recipe of gradient ascent.

    Attributes:
        start: pixels from gray with noise ("gray") or from black ("zero"); a spectrum from nothing
            ("fourier"), from a photograph ("photo") or from the mean of several ("facets"); only
            the phases of a spectrum ("phase"); or the code of a trained generator ("generator").
        optimizer: "adam"; "nadam"; "mean", steps of one mean length, as in DeepDream; "gain",
            Yosinski's steps towards a rise of `gain`.
        lr: step size; for "mean" and "gain" in pixels of [0, 1].
        steps: gradient steps.
        slope: exponent of 1/frequency, by which a spectrum is weighted.
        gain: rise of the score that a step of "gain" aims at.
        noise: standard deviation of the noise of a gray start.
        decay, sigma, blur_every, small, idle: as in `Regularizer`.
        warp_shift, warp_scale, warp_angle: the random warp before the network: a share of the
            side, a relative change of scale, degrees.
        crop_count, crop_range, crop_noise: random square crops instead: how many, their side as a
            share of the image's, and the standard deviation of the noise on them.
        focus: the "whole" image, the middle first ("center"), or with transparency ("alpha").
    """

    start: StartKind
    optimizer: Literal["adam", "nadam", "mean", "gain"]
    lr: float
    steps: int
    slope: float = 1.0
    gain: float = math.inf
    noise: float = 0.01
    decay: float = 0.0
    sigma: float = 0.0
    blur_every: int = 4
    small: float = 0.0
    idle: float = 0.0
    warp_shift: float = 0.0
    warp_scale: float = 0.0
    warp_angle: float = 0.0
    crop_count: int = 0
    crop_range: tuple[float, float] = (1.0, 1.0)
    crop_noise: float = 0.0
    focus: FocusKind = "whole"

    @property
    def is_pixel_based(self) -> bool:
        """Whether pixels are optimized, and not a spectrum or a code."""
        return self.start in ("gray", "zero")


# Yosinski 2015, table 1 (deep-visualization-toolbox, doc/running-optimize-image.md): pixels from 0
# to 255, x += lr·∂s/∂x. In [0, 1] the same step is lr/255². The start is the mean plus N(0, 10²).
CAFFE_STEP_SCALE = 1 / 255**2

YOSINSKI_START_NOISE = 10 / 255

SYNTHESIS_PRESETS = {
    # EECS 498, lecture 14, after Simonyan 2013 and Yosinski 2015: decay, blur, clipped pixels and
    # clipped gradients. The constants were found by trying on the embedded network.
    "lecture": SynthesisPreset(
        "gray",
        "mean",
        0.03,
        256,
        decay=0.005,
        sigma=0.8,
        small=0.15,
        idle=0.15,
        warp_shift=1 / 12,
        warp_scale=0.2,
        warp_angle=10,
    ),
    # The table's third row, used for most of the paper's figures.
    "yosinski": SynthesisPreset(
        "gray",
        "gain",
        100 * CAFFE_STEP_SCALE,
        1000,
        noise=YOSINSKI_START_NOISE,
        decay=0.0001,
        sigma=1.0,
    ),
    # Its first row: small pixels are clipped.
    "yosinski-small": SynthesisPreset(
        "gray",
        "gain",
        100 * CAFFE_STEP_SCALE,
        500,
        gain=2.0,
        noise=YOSINSKI_START_NOISE,
        sigma=0.5,
        small=0.5,
    ),
    # Its second row: strong decay.
    "yosinski-decay": SynthesisPreset(
        "gray",
        "gain",
        100 * CAFFE_STEP_SCALE,
        750,
        noise=YOSINSKI_START_NOISE,
        decay=0.3,
        small=0.2,
    ),
    # Its fourth row: pixels that contribute little are clipped.
    "yosinski-idle": SynthesisPreset(
        "gray",
        "gain",
        1e8 * CAFFE_STEP_SCALE,
        1000,
        gain=2.0,
        noise=YOSINSKI_START_NOISE,
        sigma=0.5,
        idle=0.9,
    ),
    # "olah" with a steeper spectrum and steps twice as long, found by trying on three networks
    # (docs/synthesis.md): large areas of colour instead of grain, in fewer steps.
    "smooth": SynthesisPreset(
        "fourier", "adam", 0.1, 96, slope=1.5, warp_shift=1 / 12, warp_scale=0.2, warp_angle=10
    ),
    # Olah 2017 (lucid, optvis/param, render.py): Adam 0.05 on a decorrelated spectrum. One warp
    # with about lucid's ranges; the number of steps was found by trying.
    "olah": SynthesisPreset(
        "fourier", "adam", 0.05, 256, warp_shift=1 / 12, warp_scale=0.2, warp_angle=10
    ),
    # Fel 2023 (xplique, features_visualizations/maco.py): NAdam 1.0 on phases, with crops of a
    # twentieth to half of the side. Here they are larger and fewer, since the image has the
    # network's own size.
    "maco": SynthesisPreset(
        "phase", "nadam", 1.0, 128, crop_count=6, crop_range=(0.5, 0.95), crop_noise=0.08
    ),
    # Nguyen 2016 (DGN): the code of a generator, decayed to the mean and kept within the bounds of
    # photographs. Their network, generator and step sizes differ; these constants were found by
    # trying.
    "generator": SynthesisPreset(
        "generator", "adam", 0.05, 80, decay=0.05, warp_shift=1 / 12, warp_scale=0.1, warp_angle=5
    ),
    # Hamblin 2024 (faccent): Adam 0.05 on a photograph's spectrum, boxes of 0.05 to 0.99 of the
    # side, noise 0.02, about 100 steps.
    "accentuation": SynthesisPreset(
        "photo", "adam", 0.05, 100, crop_count=6, crop_range=(0.4, 0.99), crop_noise=0.02
    ),
    # Nguyen 2016, multifaceted feature visualization: from the mean of the 15 images nearest to a
    # group's centre, the middle first. The paper optimizes pixels under a total variation. This is
    # "smooth" with shorter and fewer steps, or the start would be forgotten; found by trying.
    "facets": SynthesisPreset(
        "facets",
        "adam",
        0.05,
        48,
        slope=1.5,
        warp_shift=1 / 20,
        warp_scale=0.1,
        warp_angle=5,
        focus="center",
    ),
}
