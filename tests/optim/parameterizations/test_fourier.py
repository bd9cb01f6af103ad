"""What is optimized: pixels, and Lucid's spectrum re-derived as a sum of waves."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sightline.generators.architectures.decoder import load_code_generator
from sightline.generators.latent import GeneratorCode
from sightline.images.spectrum import compute_decorrelated_spectrum, compute_frequency_grid
from sightline.optim.parameterizations.fourier import FourierPhase, FourierSpectrum, Pixels

TINY = settings(max_examples=60, deadline=None, derandomize=True)
SEEDS = st.integers(0, 2**31 - 1)


def image_of(seed: int, count: int = 2) -> Tensor:
    """Pictures with many pixels exactly black and white, where the two limits meet."""
    wild = torch.rand(count, 3, 4, 5, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.3
    return wild.clamp(0, 1)


def noise_of(seed: int, size: float, count: int = 2) -> Tensor:
    return torch.randn(count, 3, 4, 5, generator=torch.Generator().manual_seed(seed + 1)) * size


# Fourier


def waves(spectrum: np.ndarray, height: int, width: int) -> np.ndarray:
    """Olah 2017 as Lucid computes it, a sum of waves: coefficients over max(f, 1/max(h, w)), an inverse transform times
    √(hw), a quarter of it, the colours correlated, a sigmoid. `spectrum` is 2×3×h×(w//2+1): real and imaginary parts."""
    picture = np.zeros((3, height, width))
    y, x = np.mgrid[:height, :width]
    for channel in range(3):
        for v in range(height):
            for u in range(width // 2 + 1):
                fy = (v if v < (height + 1) // 2 else v - height) / height
                fx = u / width
                scale = (
                    1
                    / max(math.sqrt(fx**2 + fy**2), 1 / max(height, width))
                    * math.sqrt(width * height)
                )
                z = complex(spectrum[0, channel, v, u], spectrum[1, channel, v, u]) * scale
                wave = (z * np.exp(2j * np.pi * (v * y / height + u * x / width))).real
                # The half of the spectrum that is not stored is the conjugate; the columns 0 and w/2 are their own.
                picture[channel] += wave * (1 if u == 0 or 2 * u == width else 2) / (height * width)
    picture /= 4.0
    color = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
    color = color / np.max(np.linalg.norm(color, axis=0))
    flat = picture.reshape(3, -1).T @ color.T
    return (1 / (1 + np.exp(-flat))).T.reshape(3, height, width)


SIZES = [(8, 8), (6, 9), (7, 6), (5, 5), (1, 4), (4, 1), (1, 1)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_fourier_is_a_sum_of_waves(height: int, width: int) -> None:
    start = FourierSpectrum(2, height, width, seed=3, deviation=0.3)
    expected = [
        waves(start.spectrum[:, i].detach().double().numpy(), height, width) for i in range(2)
    ]
    assert start().shape == (2, 3, height, width)
    assert np.allclose(start().detach().numpy(), np.stack(expected), atol=2e-6)


@pytest.mark.parametrize("slope", [0.5, 1.5, 2.0])
def test_the_slope_turns_the_weights_about_four_waves(slope: float) -> None:
    plain, steep = (
        FourierSpectrum(1, 32, 32, seed=1),
        FourierSpectrum(1, 32, 32, seed=1, frequency_exponent=slope),
    )
    for row, column in ((0, 1), (0, 4), (3, 5), (16, 16)):
        waves = math.hypot(row, column)
        ratio = float(steep.frequency_weights[row, column] / plain.frequency_weights[row, column])
        assert ratio == pytest.approx((waves / 4) ** (1 - slope), rel=1e-5)
    assert torch.equal(plain.spectrum, steep.spectrum)


@given(st.integers(1, 12), st.integers(1, 12), SEEDS, st.sampled_from([0.01, 1.0, 100.0]))
@TINY
def test_fourier_gives_pictures(height: int, width: int, seed: int, deviation: float) -> None:
    image = FourierSpectrum(1, height, width, seed=seed, deviation=deviation)()
    assert image.shape == (1, 3, height, width)
    assert torch.isfinite(image).all()
    assert image.min() >= 0
    assert image.max() <= 1


@pytest.mark.parametrize(("height", "width"), SIZES[:4])
def test_every_coefficient_is_pulled(height: int, width: int) -> None:
    """All but the imaginary parts of the waves that are real: the constant and, at even sides, the finest."""
    start = FourierSpectrum(1, height, width, seed=1, deviation=0.3)
    target = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(5))
    (gradient,) = torch.autograd.grad((start() * target).sum(), start.spectrum)
    moved = gradient[:, 0].abs().amax(1) > 1e-7
    for v in range(height):
        for u in range(width // 2 + 1):
            assert moved[0, v, u]
            real = (v == 0 or 2 * v == height) and (u == 0 or 2 * u == width)
            assert moved[1, v, u] == (not real), (v, u)


def test_the_first_picture_is_nearly_gray_and_the_seed_decides() -> None:
    a, b, c = (
        FourierSpectrum(2, 9, 8, seed=5),
        FourierSpectrum(2, 9, 8, seed=5),
        FourierSpectrum(2, 9, 8, seed=6),
    )
    assert torch.equal(a(), b())
    assert not torch.equal(a(), c())
    assert not torch.equal(a()[0], a()[1])
    assert (a() - 0.5).abs().max() < 0.1
    assert torch.randn(1).shape == (1,)
    state = torch.get_rng_state()
    FourierSpectrum(1, 4, 4, seed=1)
    assert torch.equal(state, torch.get_rng_state()), "no global seed"


def test_the_start_has_the_deviation_asked_for() -> None:
    for deviation in (0.01, 0.5):
        spectrum = FourierSpectrum(4, 24, 24, seed=2, deviation=deviation).spectrum
        assert spectrum.std().item() == pytest.approx(deviation, rel=0.05)
        assert abs(spectrum.mean().item()) < deviation * 0.05
    before = FourierSpectrum(1, 6, 6, seed=2)
    image = before().detach().clone()
    before.project_()
    assert torch.equal(before(), image)


# Pixels


@given(SEEDS, st.sampled_from([0.1, 1.0, 30.0]))
@TINY
def test_pixels_are_clamped_and_the_callers_are_not_touched(seed: int, size: float) -> None:
    image = image_of(seed)
    before = image.clone()
    pixels = Pixels(image)
    assert torch.equal(pixels(), image)
    assert pixels.parameters[0].is_leaf
    assert pixels.parameters[0].requires_grad
    with torch.no_grad():
        pixels.parameters[0].add_(noise_of(seed, size))
    moved = pixels().detach().clone()
    pixels.project_()
    assert torch.equal(image, before)
    assert np.array_equal(pixels().detach().numpy(), np.minimum(np.maximum(moved.numpy(), 0), 1))
    inside = (moved >= 0) & (moved <= 1)
    assert torch.equal(pixels()[inside], moved[inside])


def test_pixels_take_a_picture_that_has_a_graph() -> None:
    image = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    pixels = Pixels(image * 1)
    pixels().sum().backward()
    assert image.grad is None
    assert pixels.parameters[0].grad is not None


def test_a_photographs_spectrum_gives_it_back() -> None:
    photo = 0.1 + 0.8 * torch.rand(2, 3, 15, 20, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(FourierSpectrum(2, 15, 20, image=photo)(), photo, atol=1e-4)


def test_only_phases_move() -> None:
    """Colours undone, an image has nearly the amplitudes of photographs, which fall with frequency."""
    phase = FourierPhase(2, 32, 48, seed=1)
    assert torch.equal(phase()[0], phase()[1])
    amplitude = compute_decorrelated_spectrum(phase().detach())[0].abs()
    pair = torch.stack(
        [amplitude[:, 1:15, 1:20].flatten().log(), phase.amplitude[:, 1:15, 1:20].flatten().log()]
    )
    assert float(torch.corrcoef(pair)[0, 1]) > 0.7, (
        "what is clipped near black and white is the rest"
    )
    radius = compute_frequency_grid(32, 48)
    low, high = (
        phase.amplitude[:, (radius > a) & (radius < b)].mean(1)
        for a, b in ((0.03, 0.06), (0.3, 0.5))
    )
    slope = (high / low).log() / math.log(0.4 / 0.045)
    assert ((slope < -0.8) & (slope > -2.5)).all(), (
        "natural spectra fall with a power between 1 and 2"
    )


def test_a_code_starts_at_the_mean_and_stays_where_photographs_are() -> None:
    """Enlarged to the side asked for; every gradient step within 0 and mean + 3 deviations; decay goes back to the mean."""
    generator = load_code_generator()
    start = GeneratorCode(generator, 2, 96)
    assert torch.equal(start.code, generator.mean.expand(2, -1))
    torch.testing.assert_close(start().detach(), generator(generator.mean).expand(2, -1, -1, -1))
    assert GeneratorCode(generator, 1, 128)().shape == (1, 3, 128, 128)
    other = GeneratorCode(generator, 2, 96, shared_start=False, seed=1).code
    assert (other[0] - other[1]).abs().max() > 0.01
    start().square().sum().backward()
    assert start.code.grad is not None
    assert (start.code.grad != 0).any(1).all()
    with torch.no_grad():
        start.code.add_(torch.tensor([[1e3], [-1e3]]))
    start.project_()
    most = generator.mean + 3 * generator.deviation
    assert torch.equal(start.code, torch.cat([most, torch.zeros_like(most)]))
    start.decay_to_mean_(0.25)
    torch.testing.assert_close(
        start.code, torch.cat([most, 0 * most]) * 0.75 + 0.25 * generator.mean
    )
