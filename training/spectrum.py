"""The mean amplitude spectrum of photographs, for `parameterize.Phase`: `python training/spectrum.py FOLDER`.

Each photograph is cropped to a square of 224 pixels, its colours are undone as `parameterize` makes them, and the mean amplitude is
smoothed over rings of frequency and directions. The shipped table is of 400 photographs of 400 ImageNet classes
(EliSchwartz/imagenet-sample-images); no photograph can be told from it.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from sightline.images import io as images
from sightline.images.spectrum import compute_decorrelated_spectrum, compute_frequency_grid

SIDE, RINGS, ANGLES = 224, 24, 7
TARGET = Path(__file__).parents[1] / "src" / "sightline" / "assets" / "spectrum.safetensors"


def main() -> None:
    files = sorted(Path(sys.argv[1]).glob("*.jpg"))[::2]
    window = torch.hann_window(SIDE, periodic=False)
    window = (
        window[:, None] * window / (window.square().mean())
    )  # the edges of a crop are no edges of the picture
    total, square = torch.zeros(3, SIDE, SIDE // 2 + 1), torch.zeros(3)
    for path in files:
        image = images.crop_center(images.resize_short_side(images.read(path), SIDE), SIDE, SIDE)
        plain = torch.fft.irfft2(compute_decorrelated_spectrum(image), s=(SIDE, SIDE), norm="ortho")
        plain = plain - plain.mean((2, 3), keepdim=True)
        total += torch.fft.rfft2(plain * window, norm="ortho")[0].abs()
        square += plain[0].square().mean((1, 2))
    mean, radius = total / len(files), compute_frequency_grid(SIDE, SIDE)
    least, most = 1 / SIDE, 0.5 * 2**0.5
    rows = torch.fft.fftfreq(SIDE)[:, None].abs().expand_as(radius)
    angle = torch.atan2(rows, torch.fft.rfftfreq(SIDE).expand_as(radius))
    rings, turns = (
        torch.logspace(*torch.tensor([least, most]).log10().tolist(), RINGS),
        torch.linspace(0, torch.pi / 2, ANGLES),
    )
    table = torch.zeros(3, RINGS, ANGLES)
    spread = (rings[1] / rings[0]).log(), turns[1]
    for i, ring in enumerate(rings):
        for j, turn in enumerate(turns):
            near = torch.exp(
                -(
                    ((radius.clamp_min(least) / ring).log() / spread[0]).square()
                    + ((angle - turn) / spread[1]).square()
                )
            )
            near[0, 0] = 0
            table[:, i, j] = ((mean + 1e-9).log() * near).sum((1, 2)) / near.sum()
    save_file(
        {
            "log_amplitude": table.half(),
            "range": torch.tensor([least, most]),
            "contrast": (square / len(files)).sqrt(),
        },
        TARGET,
    )
    print(f"{len(files)} photographs, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
