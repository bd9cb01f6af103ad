"""What is optimized: pixels, lucid's spectrum re-derived as a sum of waves, and phases alone."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sightline.errors import SightlineError
from sightline.generators.architectures.decoder import load_code_generator
from sightline.generators.latent import GeneratorCode
from sightline.images.color import COLOR_CORRELATION
from sightline.images.spectrum import compute_decorrelated_spectrum, compute_frequency_grid
from sightline.optim.parameterizations.fourier import FourierPhase, FourierSpectrum, Pixels

FEW = settings(max_examples=60, deadline=None, derandomize=True)
SEEDS = st.integers(0, 2**31 - 1)


def random_image(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, height, width, generator=generator)


# ── pixels ──


@given(SEEDS, st.sampled_from([0.1, 1.0, 30.0]))
@FEW
def test_pixels_are_clamped_and_the_callers_are_not_touched(seed: int, scale: float) -> None:
    """Of images with many pixels exactly black and white, where the two limits meet."""
    image = (random_image(2, 4, 5, seed) * 1.6 - 0.3).clamp(0, 1)
    original = image.clone()
    pixels = Pixels(image)
    assert torch.equal(pixels(), image)
    assert pixels.parameters[0].is_leaf
    assert pixels.parameters[0].requires_grad

    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed + 1))
    with torch.no_grad():
        pixels.parameters[0].add_(noise * scale)
    moved = pixels().detach().clone()
    pixels.project_()
    assert torch.equal(image, original)
    expected = np.minimum(np.maximum(moved.numpy(), 0), 1)
    assert np.array_equal(pixels().detach().numpy(), expected)


def test_pixels_take_an_image_that_has_a_graph() -> None:
    image = random_image(1, 4, 6).requires_grad_()
    pixels = Pixels(image * 1)
    pixels().sum().backward()
    assert image.grad is None
    assert pixels.parameters[0].grad is not None


# ── Fourier spectrum ──


def sum_waves(spectrum: np.ndarray, height: int, width: int) -> np.ndarray:
    """Olah 2017 as lucid computes it, wave by wave, of real and imaginary parts 2×3×h×(w//2+1).

    Coefficients over max(f, 1/max(h, w)), an inverse transform times √(hw), a quarter of it, the
    colours correlated, a sigmoid.
    """
    image = np.zeros((3, height, width))
    y, x = np.mgrid[:height, :width]
    for channel, v, u in np.ndindex(3, height, width // 2 + 1):
        fy = (v if v < (height + 1) // 2 else v - height) / height
        fx = u / width
        frequency = max(math.sqrt(fx**2 + fy**2), 1 / max(height, width))
        coefficient = complex(spectrum[0, channel, v, u], spectrum[1, channel, v, u])
        amplitude = coefficient / frequency * math.sqrt(width * height)
        wave = (amplitude * np.exp(2j * np.pi * (v * y / height + u * x / width))).real
        # The half of the spectrum that is not stored is the conjugate; the columns 0 and w/2 are
        # their own.
        multiplicity = 1 if u == 0 or 2 * u == width else 2
        image[channel] += wave * multiplicity / (height * width)
    image /= 4.0
    color = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
    color = color / np.max(np.linalg.norm(color, axis=0))
    correlated = image.reshape(3, -1).T @ color.T
    return (1 / (1 + np.exp(-correlated))).T.reshape(3, height, width)


SIZES = [(8, 8), (6, 9), (7, 6), (5, 5), (1, 4), (4, 1), (1, 1)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_spectrum_is_a_sum_of_waves(height: int, width: int) -> None:
    parameterization = FourierSpectrum(2, height, width, seed=3, deviation=0.3)
    spectra = parameterization.spectrum.detach().double().numpy()
    expected = np.stack([sum_waves(spectra[:, index], height, width) for index in range(2)])
    assert parameterization().shape == (2, 3, height, width)
    assert np.allclose(parameterization().detach().numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("exponent", [0.5, 1.5, 2.0])
def test_the_exponent_turns_the_weights_about_four_waves(exponent: float) -> None:
    """In an image of 24×32 pixels, by waves per longer side."""
    plain = FourierSpectrum(1, 24, 32, seed=1)
    steep = FourierSpectrum(1, 24, 32, seed=1, frequency_exponent=exponent)
    ratio = steep.frequency_weights / plain.frequency_weights
    for row, column in ((0, 1), (0, 4), (3, 5), (12, 16)):
        waves = math.hypot(row * 32 / 24, column)
        expected = (waves / 4) ** (1 - exponent)
        assert float(ratio[row, column]) == pytest.approx(expected, rel=1e-5)
    assert torch.equal(plain.spectrum, steep.spectrum)


@given(st.integers(1, 12), st.integers(1, 12), SEEDS, st.sampled_from([0.01, 1.0, 100.0]))
@FEW
def test_every_spectrum_gives_an_image(
    height: int, width: int, seed: int, deviation: float
) -> None:
    image = FourierSpectrum(1, height, width, seed=seed, deviation=deviation)()
    assert image.shape == (1, 3, height, width)
    assert torch.isfinite(image).all()
    assert image.min() >= 0
    assert image.max() <= 1


@pytest.mark.parametrize(("height", "width"), SIZES[:4])
def test_every_coefficient_has_a_gradient(height: int, width: int) -> None:
    """But for the imaginary parts of real waves: the constant and, at even sides, the finest."""
    parameterization = FourierSpectrum(1, height, width, seed=1, deviation=0.3)
    weights = random_image(1, height, width, seed=5)
    score = (parameterization() * weights).sum()
    (gradient,) = torch.autograd.grad(score, parameterization.spectrum)
    has_gradient = gradient[:, 0].abs().amax(1) > 1e-7
    for v, u in np.ndindex(height, width // 2 + 1):
        is_real_wave = (v == 0 or 2 * v == height) and (u == 0 or 2 * u == width)
        assert has_gradient[0, v, u]
        assert has_gradient[1, v, u] == (not is_real_wave), (v, u)


def test_the_first_image_is_nearly_gray_and_depends_on_the_seed() -> None:
    image = FourierSpectrum(2, 9, 8, seed=5)()
    assert torch.equal(image, FourierSpectrum(2, 9, 8, seed=5)())
    assert not torch.equal(image, FourierSpectrum(2, 9, 8, seed=6)())
    assert not torch.equal(image[0], image[1])
    assert (image - 0.5).abs().max() < 0.1
    shared = FourierSpectrum(2, 9, 8, seed=5, shared_start=True)()
    assert torch.equal(shared[0], shared[1])


def test_the_global_random_state_is_not_used() -> None:
    state = torch.get_rng_state()
    FourierSpectrum(1, 4, 6, seed=1)
    FourierPhase(1, 4, 6, seed=1)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("deviation", [0.01, 0.5])
def test_the_start_has_the_deviation(deviation: float) -> None:
    spectrum = FourierSpectrum(4, 24, 32, seed=2, deviation=deviation).spectrum
    assert spectrum.std().item() == pytest.approx(deviation, rel=0.05)
    assert abs(spectrum.mean().item()) < deviation * 0.05


@pytest.mark.parametrize("parameterization_class", [FourierSpectrum, FourierPhase])
def test_every_spectrum_and_phase_is_allowed(parameterization_class: type) -> None:
    parameterization = parameterization_class(1, 6, 8, seed=2)
    image = parameterization().detach().clone()
    parameterization.project_()
    assert torch.equal(parameterization(), image)


def test_the_spectrum_of_an_image_gives_it_back() -> None:
    photo = 0.1 + 0.8 * random_image(2, 15, 20)
    assert torch.allclose(FourierSpectrum(2, 15, 20, image=photo)(), photo, atol=1e-4)


# ── phases alone ──


def test_only_phases_move() -> None:
    """The amplitudes are nearly those of photographs, but for values near black and white."""
    parameterization = FourierPhase(2, 32, 48, seed=1)
    assert torch.equal(parameterization()[0], parameterization()[1])
    amplitude = compute_decorrelated_spectrum(parameterization().detach())[0].abs()
    inner = (slice(None), slice(1, 15), slice(1, 20))
    log_amplitudes = torch.stack(
        [amplitude[inner].flatten().log(), parameterization.amplitude[inner].flatten().log()]
    )
    assert float(torch.corrcoef(log_amplitudes)[0, 1]) > 0.7


def test_amplitudes_fall_as_those_of_natural_images() -> None:
    """With a power of the frequency between 1 and 2."""
    amplitude = FourierPhase(1, 32, 48).amplitude
    radius = compute_frequency_grid(32, 48)
    low = amplitude[:, (radius > 0.03) & (radius < 0.06)].mean(1)
    high = amplitude[:, (radius > 0.3) & (radius < 0.5)].mean(1)
    slope = (high / low).log() / math.log(0.4 / 0.045)
    assert ((slope < -0.8) & (slope > -2.5)).all()


def test_each_channel_has_the_contrast_of_photographs() -> None:
    """MACO before the colours: mean 0 and the channel's own standard deviation, in every image."""
    parameterization = FourierPhase(3, 32, 48, seed=1, shared_start=False)
    # In double precision the sigmoid can be undone even near black and white.
    for name in ("phase", "amplitude", "contrast", "color_matrix"):
        setattr(parameterization, name, getattr(parameterization, name).detach().double())
    correlated = parameterization().logit()
    decorrelation = torch.linalg.inv(COLOR_CORRELATION.double())
    waves = torch.einsum("dc,nchw->ndhw", decorrelation, correlated)
    assert float(waves.mean((2, 3)).abs().max()) < 1e-6
    expected = parameterization.contrast.flatten().expand(3, -1)
    torch.testing.assert_close(waves.std((2, 3)), expected, rtol=1e-3, atol=0)


def test_phases_are_standardized() -> None:
    """A shift or a scale of all phases of an image changes nothing."""
    parameterization = FourierPhase(2, 16, 24, seed=1, shared_start=False)
    image = parameterization().detach().clone()
    with torch.no_grad():
        parameterization.phase[0] = 5 * parameterization.phase[0] + 2
    torch.testing.assert_close(parameterization().detach(), image, atol=1e-3, rtol=0)


# ── a generator's code ──


def test_a_code_starts_at_the_mean_and_stays_in_range() -> None:
    """Of size as asked for, within 0 and mean + 3 deviations; decay returns to the mean."""
    generator = load_code_generator()
    start = GeneratorCode(generator, 2, 96)
    assert torch.equal(start.code, generator.mean.expand(2, -1))
    torch.testing.assert_close(start().detach(), generator(generator.mean).expand(2, -1, -1, -1))
    assert GeneratorCode(generator, 1, 128)().shape == (1, 3, 128, 128)
    codes = GeneratorCode(generator, 2, 96, shared_start=False, seed=1).code
    assert (codes[0] - codes[1]).abs().max() > 0.01

    start().square().sum().backward()
    assert start.code.grad is not None
    assert (start.code.grad != 0).any(1).all()

    with torch.no_grad():
        start.code.add_(torch.tensor([[1e3], [-1e3]]))
    start.project_()
    upper = generator.mean + 3 * generator.deviation
    bounds = torch.cat([upper, torch.zeros_like(upper)])
    assert torch.equal(start.code, bounds)
    start.decay_to_mean_(0.25)
    torch.testing.assert_close(start.code, bounds * 0.75 + 0.25 * generator.mean)


# ── other channels than red, green and blue ──


@pytest.mark.parametrize("channels", [1, 2, 5, 13])
def test_other_channels_are_independent(channels: int) -> None:
    """A spectrum through one inverse transform and a sigmoid, each channel for itself."""
    height, width = 12, 18
    parameterization = FourierSpectrum(2, height, width, seed=4, channels=channels, deviation=0.5)
    image = parameterization()
    weighted = parameterization.spectrum.detach() * parameterization.frequency_weights
    waves = torch.fft.irfft2(torch.complex(*weighted), s=(height, width), norm="ortho") / 4
    gain = float(COLOR_CORRELATION[:, 0].mean())
    torch.testing.assert_close(image.detach(), (gain * waves).sigmoid(), atol=1e-5, rtol=1e-5)

    image[:, -1].sum().backward()
    is_moved = parameterization.spectrum.grad.abs().amax((0, 1, 3, 4)) > 0
    assert is_moved.tolist() == [False] * (channels - 1) + [True]


def test_a_spectrum_of_five_channels_starts_at_an_image() -> None:
    image = torch.rand(2, 5, 9, 12, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05
    start = FourierSpectrum(2, 9, 12, image=image, channels=5)()
    torch.testing.assert_close(start.detach(), image, atol=1e-4, rtol=0)


def test_phases_have_the_amplitudes_of_photographs_or_none() -> None:
    assert FourierPhase(1, 12, 18, channels=1)().shape == (1, 1, 12, 18)
    with pytest.raises(SightlineError, match="no amplitudes of 4 channels"):
        FourierPhase(1, 12, 18, channels=4)


def test_a_default_of_double_precision_changes_nothing() -> None:
    expected = [FourierSpectrum(1, 9, 12, seed=2)(), FourierPhase(1, 9, 12, seed=2)()]
    torch.set_default_dtype(torch.float64)
    try:
        images = [FourierSpectrum(1, 9, 12, seed=2)(), FourierPhase(1, 9, 12, seed=2)()]
    finally:
        torch.set_default_dtype(torch.float32)
    for image, usual in zip(images, expected, strict=True):
        assert image.dtype == torch.float32
        torch.testing.assert_close(image, usual, atol=1e-5, rtol=0)
