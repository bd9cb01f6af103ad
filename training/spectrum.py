"""Measures the mean amplitude spectrum of photographs: `python training/spectrum.py FOLDER`.

A synthesis that optimizes phases takes its amplitudes from it. Each photograph is cropped to a
square of 224 pixels, its colours are decorrelated as the Fourier parameterization has them, and the
mean amplitude is smoothed over rings of frequency and over directions. The shipped table is of 400
photographs of 400 ImageNet classes (EliSchwartz/imagenet-sample-images); no photograph can be
recovered from it.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from sightline.images.io.pictures import read
from sightline.images.spectrum import compute_decorrelated_spectrum, compute_frequency_grid
from sightline.images.transforms import crop_center, resize_short_side

SIDE = 224
RING_COUNT = 24
ANGLE_COUNT = 7
MIN_FREQUENCY = 1 / SIDE
MAX_FREQUENCY = 0.5 * 2**0.5
TARGET = Path(__file__).parents[1] / "src" / "sightline" / "assets" / "spectrum.safetensors"


def measure_amplitudes(paths: list[Path]) -> tuple[Tensor, Tensor]:
    """The mean amplitude 3×SIDE×(SIDE/2 + 1) and the standard deviation of each colour, 3."""
    # The edges of a crop are no edges of the picture: a window fades them out.
    hann = torch.hann_window(SIDE, periodic=False)
    window = hann[:, None] * hann / hann.square().mean()
    amplitude_sum = torch.zeros(3, SIDE, SIDE // 2 + 1)
    square_sum = torch.zeros(3)
    for path in paths:
        resized = resize_short_side(read(path), SIDE)
        image = crop_center(resized, SIDE, SIDE)
        spectrum = compute_decorrelated_spectrum(image)
        decorrelated = torch.fft.irfft2(spectrum, s=(SIDE, SIDE), norm="ortho")
        centred = decorrelated - decorrelated.mean((2, 3), keepdim=True)
        amplitude_sum += torch.fft.rfft2(centred * window, norm="ortho")[0].abs()
        square_sum += centred[0].square().mean((1, 2))
    return amplitude_sum / len(paths), (square_sum / len(paths)).sqrt()


def smooth_amplitudes(amplitude: Tensor) -> Tensor:
    """The log amplitude at frequencies (rings) and angles, 3×RING_COUNT×ANGLE_COUNT.

    Each is a mean with Gaussian weights, one ring and one angle wide.
    """
    frequency = compute_frequency_grid(SIDE, SIDE)
    rows = torch.fft.fftfreq(SIDE)[:, None].abs().expand_as(frequency)
    columns = torch.fft.rfftfreq(SIDE).expand_as(frequency)
    angle = torch.atan2(rows, columns)
    frequency = frequency.clamp_min(MIN_FREQUENCY)
    log_range = torch.tensor([MIN_FREQUENCY, MAX_FREQUENCY]).log10().tolist()
    rings = torch.logspace(*log_range, RING_COUNT)
    angles = torch.linspace(0, torch.pi / 2, ANGLE_COUNT)
    ring_width = (rings[1] / rings[0]).log()
    angle_width = angles[1]

    log_amplitude = (amplitude + 1e-9).log()
    table = torch.zeros(3, RING_COUNT, ANGLE_COUNT)
    for ring_index, ring in enumerate(rings):
        ring_distance = ((frequency / ring).log() / ring_width).square()
        for angle_index, ring_angle in enumerate(angles):
            angle_distance = ((angle - ring_angle) / angle_width).square()
            weights = torch.exp(-(ring_distance + angle_distance))
            weights[0, 0] = 0  # the mean colour
            weighted_sum = (log_amplitude * weights).sum((1, 2))
            table[:, ring_index, angle_index] = weighted_sum / weights.sum()
    return table


def main() -> None:
    paths = sorted(Path(sys.argv[1]).glob("*.jpg"))[::2]
    amplitude, contrast = measure_amplitudes(paths)
    tensors = {
        "log_amplitude": smooth_amplitudes(amplitude).half(),
        "range": torch.tensor([MIN_FREQUENCY, MAX_FREQUENCY]),
        "contrast": contrast,
    }
    save_file(tensors, TARGET)
    print(f"{len(paths)} photographs, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
