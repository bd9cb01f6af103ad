"""Measures the embedded network on Imagenette's validation images: `python training/evaluate.py --data DIR`."""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from imagenette import Photos, center_crop, to_tensor
from torch import Tensor

import sightline as sl


@torch.inference_mode()
def accuracy(
    logits_of: Callable[[Tensor], Tensor], photos: Photos, size: int, batch: int = 128
) -> float:
    """Share of `photos` whose largest logit is their label; one centre crop of `size` pixels each, no averaging."""
    right = 0
    for start in range(0, len(photos), batch):
        items = [photos[i] for i in range(start, min(start + batch, len(photos)))]
        logits = logits_of(to_tensor([center_crop(image, size) for image, _ in items]))
        right += int((logits.argmax(1) == torch.tensor([label for _, label in items])).sum())
    return right / len(photos)


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
    photos, model = Photos(options.data / "imagenette160-val.tar", options.cache), sl.load()
    for size in options.sizes:
        print(
            f"{size} px: {accuracy(model.logits, photos, size):.2%} of {len(photos)} validation images"
        )


if __name__ == "__main__":
    main()
