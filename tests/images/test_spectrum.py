"""Frequencies are those of waves that one can draw; the spectrum can be undone."""

import math

import pytest
import torch
from safetensors.torch import load_file

from sightline.images.color import COLOR_CORRELATION
from sightline.images.spectrum import (
    SPECTRUM_FILE,
    compute_decorrelated_spectrum,
    compute_frequency_grid,
    load_natural_spectrum,
)

HEIGHT, WIDTH = 12, 20


@pytest.mark.parametrize(("row", "column"), [(0, 3), (2, 0), (2, 5), (-3, 4), (6, 10)])
def test_a_frequency_is_that_of_the_wave_of_its_coefficient(row: int, column: int) -> None:
    y = torch.arange(HEIGHT)[:, None]
    x = torch.arange(WIDTH)
    wave = torch.cos(2 * math.pi * (row * y / HEIGHT + column * x / WIDTH))
    amplitudes = torch.fft.rfft2(wave).abs()
    # The wave of the opposite frequency is the same.
    strongest = amplitudes > 0.4 * amplitudes.max()
    frequencies = compute_frequency_grid(HEIGHT, WIDTH)[strongest]
    expected = math.hypot(row / HEIGHT, column / WIDTH)
    torch.testing.assert_close(frequencies, torch.full_like(frequencies, expected))


def test_the_spectrum_comes_from_the_image_and_leads_back() -> None:
    image = torch.rand(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    spectrum = compute_decorrelated_spectrum(image)
    assert spectrum.shape == (2, 3, HEIGHT, WIDTH // 2 + 1)
    channels = torch.fft.irfft2(spectrum, s=(HEIGHT, WIDTH), norm="ortho")
    colored = torch.einsum("nchw,dc->ndhw", channels, COLOR_CORRELATION)
    torch.testing.assert_close(colored.sigmoid(), image.clamp(0.02, 0.98), atol=1e-4, rtol=0)


def test_amplitudes_of_photographs_fall_with_frequency() -> None:
    amplitudes, contrast = load_natural_spectrum(48, 80)
    assert amplitudes.shape == (3, 48, 41)
    assert contrast.shape == (3, 1, 1)
    assert (amplitudes[:, 0, 0] == 0).all()
    assert amplitudes.isfinite().all()
    frequency = compute_frequency_grid(48, 80)
    means = [
        amplitudes[0][(frequency >= low) & (frequency < 2 * low)].mean().item()
        for low in (0.0125, 0.025, 0.05, 0.1, 0.2)
    ]
    assert means == sorted(means, reverse=True)
    assert 1 < means[1] / means[2] < 4, "about inversely with frequency"


def test_both_signs_of_the_vertical_frequency_are_alike() -> None:
    amplitudes, _ = load_natural_spectrum(10, 16)
    torch.testing.assert_close(amplitudes[:, 1:5], amplitudes[:, 6:].flip(1))


@pytest.mark.parametrize(("height", "width"), [(16, 40), (40, 16)])
def test_amplitudes_are_those_of_the_table(height: int, width: int) -> None:
    """Read by hand: rows of the table are log frequencies, columns angles from 0 to 90 degrees."""
    table = load_file(SPECTRUM_FILE)
    log_amplitudes = table["log_amplitude"].double()
    min_frequency, max_frequency = table["range"].tolist()
    levels, angles = log_amplitudes.shape[1:]
    amplitudes, _ = load_natural_spectrum(height, width)
    for row in range(1 - height // 2, height // 2):
        for column in range(width // 2 + 1):
            vertical = row / height
            horizontal = column / width
            frequency = math.hypot(vertical, horizontal)
            if not frequency:
                continue
            octaves = math.log(frequency / min_frequency) / math.log(max_frequency / min_frequency)
            level = min(max(octaves, 0), 1) * (levels - 1)
            angle = math.atan2(abs(vertical), horizontal) / (math.pi / 2) * (angles - 1)
            low_level = min(int(level), levels - 2)
            low_angle = min(int(angle), angles - 2)
            corners = log_amplitudes[:, low_level : low_level + 2, low_angle : low_angle + 2]
            level_weights = torch.tensor([1 - level + low_level, level - low_level]).double()
            angle_weights = torch.tensor([1 - angle + low_angle, angle - low_angle]).double()
            expected = (corners @ angle_weights @ level_weights).exp().float()
            torch.testing.assert_close(amplitudes[:, row, column], expected, rtol=1e-3, atol=0)


def test_the_table_is_read_by_direction() -> None:
    """Horizontal and vertical waves keep their own amplitudes when the picture's sides change."""
    wide, _ = load_natural_spectrum(32, 64)
    high, _ = load_natural_spectrum(64, 32)
    # The same frequencies, 1/8 and 1/4 of a wave per pixel.
    torch.testing.assert_close(wide[:, 0, 8], high[:, 0, 4])
    torch.testing.assert_close(wide[:, 8, 0], high[:, 16, 0])
    assert not torch.allclose(wide[:, 0, 8], wide[:, 4, 0], rtol=1e-3)
