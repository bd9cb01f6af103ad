"""The spectrum constraint: what it is zero for, and that its projection is the nearest."""

import pytest
import torch
from torch import Tensor

import sightline as sl
from sightline.optim.objectives.spectrum import build_spectrum_objective, project_onto_spectrum


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def loss(model: sl.Model, image: Tensor, exemplar: Tensor) -> float:
    return -float(build_spectrum_objective(exemplar).bind(model)(image, {}))


def test_is_zero_for_the_exemplar_wherever_it_is_rolled_to(tiny: sl.Model) -> None:
    exemplar = random(1, 3, 20, 24)
    for shift in ((0, 0), (3, 0), (7, 11)):
        assert loss(tiny, exemplar.roll(shift, (2, 3)), exemplar) < 1e-10
    assert loss(tiny, random(1, 3, 20, 24, seed=1), exemplar) > 0.1


def test_the_projection_has_the_exemplar_s_moduli_and_is_the_nearest(tiny: sl.Model) -> None:
    exemplar, image = random(1, 3, 16, 18), random(1, 3, 16, 18, seed=2)
    nearest = project_onto_spectrum(image, exemplar)
    torch.testing.assert_close(
        torch.fft.rfft2(nearest).abs(), torch.fft.rfft2(exemplar).abs(), atol=1e-3, rtol=1e-3
    )
    distance = (nearest - image).square().sum()
    for shift in ((1, 0), (0, 1), (5, 7), (8, 9)):
        assert distance <= (exemplar.roll(shift, (2, 3)) - image).square().sum() + 1e-4


def test_a_larger_picture_gets_the_same_energy_per_pixel() -> None:
    exemplar = random(1, 3, 16, 16)
    nearest = project_onto_spectrum(random(1, 3, 48, 40, seed=3), exemplar)
    assert nearest.shape == (1, 3, 48, 40)
    for channel in range(3):
        assert float(nearest[:, channel].var()) == pytest.approx(
            float(exemplar[:, channel].var()), rel=0.3
        )
        assert float(nearest[:, channel].mean()) == pytest.approx(
            float(exemplar[:, channel].mean()), abs=0.02
        )
