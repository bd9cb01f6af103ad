"""Measures the accuracy of the embedded network: `python training/evaluate.py --data DIR`."""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from imagenette import Photos, center_crop, to_tensor
from torch import Tensor

import sightline as sl


@torch.inference_mode()
def measure_accuracy(
    compute_logits: Callable[[Tensor], Tensor], photos: Photos, size: int, batch: int = 128
) -> float:
    """Share of photographs whose largest logit is their label.

    Each is seen in one centre crop of `size` pixels, without averaging.
    """
    correct_count = 0
    for start in range(0, len(photos), batch):
        items = [photos[index] for index in range(start, min(start + batch, len(photos)))]
        labels = torch.tensor([label for _, label in items])
        crops = [center_crop(image, size) for image, _ in items]
        predictions = compute_logits(to_tensor(crops)).argmax(1)
        correct_count += int((predictions == labels).sum())
    return correct_count / len(photos)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with imagenette160-val.tar"
    )
    parser.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir()) / "sightline-imagenette"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 160])
    options = parser.parse_args()
    photos = Photos(options.data / "imagenette160-val.tar", options.cache)
    model = sl.load()
    for size in options.sizes:
        accuracy = measure_accuracy(model.logits, photos, size)
        print(f"{size} px: {accuracy:.2%} of {len(photos)} validation images")


if __name__ == "__main__":
    main()
