"""How a synthesis begins: gray and black starts, optimizers, views, and frames for a movie."""

from dataclasses import replace

import pytest
import torch
from helpers import smooth
from torch import Tensor

import sightline as sl
from sightline.methods.synthesis.initialization import (
    MovieRecorder,
    PictureSpec,
    build_view_transforms,
    chain_view_transforms,
    make_gray_start,
    make_synthesis_optimizer,
    make_synthesis_start,
)
from sightline.methods.synthesis.presets import SYNTHESIS_PRESETS
from sightline.optim.optimizers import Adam, FixedGainDescent, SteepestDescent
from sightline.optim.parameterizations.fourier import FourierPhase, FourierSpectrum, Pixels
from sightline.optim.parameterizations.transparency import TransparentImage
from sightline.registry.progress import Step

LECTURE = SYNTHESIS_PRESETS["lecture"]


def make_generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_gray_has_noise_of_the_preset_s_spread() -> None:
    spec = PictureSpec(size=(64, 64), count=2, seed=0, same_start=False)
    preset = replace(LECTURE, noise=0.05)
    start = make_gray_start(preset, spec, make_generator())
    assert start.shape == (2, 3, 64, 64)
    assert float(start.mean()) == pytest.approx(0.5, abs=0.002)
    assert float(start.std()) == pytest.approx(0.05, rel=0.03)
    assert not torch.equal(start[0], start[1])


def test_all_may_start_alike_and_black_is_black() -> None:
    spec = PictureSpec(size=(16, 16), count=3, seed=0, same_start=True)
    start = make_gray_start(LECTURE, spec, make_generator())
    assert torch.equal(start[0], start[2])
    black = replace(LECTURE, start="zero", noise=0.0)
    assert not make_gray_start(black, spec, make_generator()).any()


@pytest.mark.parametrize(
    ("name", "kind"),
    [("lecture", Pixels), ("smooth", FourierSpectrum), ("maco", FourierPhase)],
)
def test_the_preset_says_what_is_optimized(name: str, kind: type, tiny: sl.Model) -> None:
    spec = PictureSpec(size=(24, 24), count=2, seed=0, same_start=False)
    preset = SYNTHESIS_PRESETS[name]
    parameterization, after_step = make_synthesis_start(tiny, preset, spec, None, make_generator())
    assert isinstance(parameterization, kind)
    assert (after_step is not None) == preset.is_pixel_based


def test_a_start_from_a_picture_and_with_transparency(tiny: sl.Model) -> None:
    spec = PictureSpec(size=(24, 24), count=1, seed=0, same_start=False)
    picture = smooth(side=24, seed=4)
    pixels, _ = make_synthesis_start(tiny, LECTURE, spec, picture, make_generator())
    assert isinstance(pixels, Pixels)
    torch.testing.assert_close(pixels().detach(), picture)
    preset = replace(SYNTHESIS_PRESETS["smooth"], focus="alpha")
    transparent, _ = make_synthesis_start(tiny, preset, spec, None, make_generator())
    assert isinstance(transparent, TransparentImage)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("lecture", SteepestDescent), ("yosinski", FixedGainDescent), ("olah", Adam), ("maco", Adam)],
)
def test_the_preset_s_optimizer(name: str, kind: type) -> None:
    leaf = torch.zeros(2, requires_grad=True)
    assert isinstance(make_synthesis_optimizer(SYNTHESIS_PRESETS[name])([leaf]), kind)


def test_views_are_crops_or_a_warp_or_none() -> None:
    still = replace(LECTURE, warp_shift=0.0, warp_scale=0.0, warp_angle=0.0)
    assert build_view_transforms(still, 24, 10, make_generator()) == []
    for name, count in (("lecture", 1), ("maco", 1), ("facets", 2)):
        preset = SYNTHESIS_PRESETS[name]
        assert len(build_view_transforms(preset, 24, 10, make_generator())) == count


def test_transforms_run_in_order() -> None:
    def double(image: Tensor) -> Tensor:
        return image * 2

    def add_one(image: Tensor) -> Tensor:
        return image + 1

    assert chain_view_transforms([]) is None
    chained = chain_view_transforms([double, add_one])
    assert chained is not None
    assert float(chained(torch.tensor(3.0))) == 7


def test_every_third_step_is_a_frame_and_the_caller_may_stop() -> None:
    image = smooth(2, side=8)
    recorder = MovieRecorder(
        lambda step: step.index == 5, 3, keep_frames=True, show_picture=lambda image: image
    )
    stops = [recorder(Step(index, 9, torch.zeros(2), image)) for index in range(1, 8)]
    assert stops == [False, False, False, False, True, False, False]
    assert len(recorder.frames) == 3
    silent = MovieRecorder(None, 1, keep_frames=False, show_picture=lambda image: image)
    assert silent(Step(1, 9, torch.zeros(2), image)) is False
    assert silent.frames == []
