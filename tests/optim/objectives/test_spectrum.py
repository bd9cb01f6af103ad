"""The spectrum constraint: what it is zero for, and that its projection is the nearest."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import sightline as sl
from sightline.optim.objectives.spectrum import build_spectrum_objective, project_onto_spectrum


def random_image(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, height, width, generator=generator)


def compute_loss(model: sl.Model, image: Tensor, exemplar: Tensor) -> list[float]:
    return (-build_spectrum_objective(exemplar).bind(model)(image, {})).tolist()


@pytest.mark.parametrize("shift", [(0, 0), (3, 0), (7, 11)])
def test_it_is_zero_for_the_exemplar_rolled_anywhere(
    tiny: sl.Model, shift: tuple[int, int]
) -> None:
    exemplar = random_image(1, 20, 24)
    images = torch.cat([exemplar.roll(shift, (2, 3)), random_image(1, 20, 24, seed=1)])
    rolled_loss, random_loss = compute_loss(tiny, images, exemplar)
    assert rolled_loss < 1e-10
    assert random_loss > 0.1


def test_it_is_half_the_squared_distance_over_the_variance(tiny: sl.Model) -> None:
    """And its gradient is the distance: the projection counts as constant."""
    exemplar = random_image(1, 16, 18)
    image = random_image(2, 16, 18, seed=2).requires_grad_()
    distance = (image - project_onto_spectrum(image, exemplar)).detach()
    variance = sum(float(exemplar[:, index].var(correction=0)) for index in range(3)) / 3
    scores = build_spectrum_objective(exemplar).bind(tiny)(image, {})
    expected = -distance.square().mean((1, 2, 3)) / (2 * variance)
    torch.testing.assert_close(scores.detach(), expected)
    (gradient,) = torch.autograd.grad(scores.sum(), image)
    torch.testing.assert_close(gradient, -distance / (image[0].numel() * variance))


def test_the_projection_has_the_exemplars_moduli_and_is_the_nearest() -> None:
    exemplar = random_image(1, 16, 18)
    image = random_image(1, 16, 18, seed=2)
    projection = project_onto_spectrum(image, exemplar)
    moduli = torch.fft.rfft2(projection).abs()
    expected_moduli = torch.fft.rfft2(exemplar).abs()
    torch.testing.assert_close(moduli, expected_moduli, atol=1e-3, rtol=1e-3)
    distance = (projection - image).square().sum()
    for shift in ((1, 0), (0, 1), (5, 7), (8, 9)):
        rolled_distance = (exemplar.roll(shift, (2, 3)) - image).square().sum()
        assert distance <= rolled_distance + 1e-4


def test_a_larger_image_gets_the_same_energy_per_pixel() -> None:
    exemplar = random_image(1, 16, 20)
    projection = project_onto_spectrum(random_image(1, 48, 40, seed=3), exemplar)
    assert projection.shape == (1, 3, 48, 40)
    for channel in range(3):
        expected = exemplar[:, channel]
        assert float(projection[:, channel].var()) == pytest.approx(float(expected.var()), rel=0.3)
        assert float(projection[:, channel].mean()) == pytest.approx(
            float(expected.mean()), abs=0.02
        )


@pytest.mark.parametrize(("height", "width"), [(40, 20), (16, 50)])
def test_the_exemplar_fades_only_where_the_image_is_longer(height: int, width: int) -> None:
    """The moduli of an exemplar of 16×20 pixels, padded with zeros, at equal energy per pixel."""
    exemplar = random_image(1, 16, 20)
    projection = project_onto_spectrum(random_image(1, height, width, seed=3), exemplar)
    window = np.ones((16, 20))
    if height > 16:
        window *= np.hanning(18)[1:-1, None]
    if width > 20:
        window *= np.hanning(22)[1:-1]
    mean = exemplar.mean((2, 3), keepdim=True)
    faded = (exemplar - mean)[0].double().numpy() * window
    expected = np.abs(np.fft.rfft2(faded, s=(height, width)))
    expected *= math.sqrt(height * width / (window**2).sum())
    moduli = torch.fft.rfft2(projection - mean)[0].abs().numpy()
    assert np.allclose(moduli, expected, atol=1e-3, rtol=1e-3)


def test_a_smaller_image_uses_a_part_of_the_exemplar() -> None:
    exemplar = random_image(1, 30, 40)
    image = random_image(1, 12, 50, seed=3)
    assert project_onto_spectrum(image, exemplar).shape == (1, 3, 12, 50)
