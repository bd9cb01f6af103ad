"""Measures an embedded network: accuracy on photographs, under attack, and its first layer.

    python training/evaluate.py --data DIR
    python training/evaluate.py --data DIR --network sightnet_plain --attacked 0
    python training/evaluate.py --data DIR --weights FILE

The attack is the toolkit's own and shares no code with the training: projected gradient ascent
inside an L2 ball (Madry et al. 2018), 20 steps from a random start, in float32.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from imagenette import Photos, center_crop, to_tensor
from journal import run_script
from roughness import measure_roughness
from torch import Tensor

import sightline as sl

ATTACK_SIZE = 128


@torch.inference_mode()
def measure_accuracy(
    compute_logits: Callable[[Tensor], Tensor], photos: Photos, size: int, batch: int = 128
) -> float:
    """Share of photographs whose largest logit is their label.

    Each is seen in one centre crop of `size` pixels, without averaging.
    """
    correct_count = 0
    for start in range(0, len(photos), batch):
        crops, labels = read_crops(photos, range(start, min(start + batch, len(photos))), size)
        predictions = compute_logits(crops).argmax(1)
        correct_count += int((predictions == labels).sum())
    return correct_count / len(photos)


def measure_robust_accuracy(
    model: sl.Model, photos: Photos, count: int, *, eps: float, steps: int, batch: int = 64
) -> tuple[float, float]:
    """Shares of `count` photographs, evenly drawn, that are right before and after the attack.

    The attack changes 128-pixel centre crops by at most `eps` in L2, values in [0, 1]. It leaves
    the class that the network predicts; what was wrong before counts as wrong after it.
    """
    indices = torch.linspace(0, len(photos) - 1, count).round().int().tolist()
    clean_count = 0
    robust_count = 0
    for start in range(0, count, batch):
        crops, labels = read_crops(photos, indices[start : start + batch], ATTACK_SIZE)
        result = sl.adversarial(model, crops, norm="l2", eps=eps, steps=steps, early=False)
        with torch.inference_mode():
            is_right = model.logits(crops).argmax(1) == labels
        attacked_labels = result.values["logits"].argmax(1)
        clean_count += int(is_right.sum())
        robust_count += int((is_right & (attacked_labels == labels)).sum())
    return clean_count / count, robust_count / count


def read_crops(photos: Photos, indices: range | list[int], size: int) -> tuple[Tensor, Tensor]:
    """Centre crops N×3×size×size of some photographs, in [0, 1], and their labels N."""
    items = [photos[index] for index in indices]
    labels = torch.tensor([label for _, label in items])
    return to_tensor([center_crop(image, size) for image, _ in items]), labels


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with imagenette160-val.tar"
    )
    parser.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir()) / "sightline-imagenette"
    )
    parser.add_argument("--network", default="sightnet")
    parser.add_argument("--weights", help="a file of weights in place of the shipped ones")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 160])
    parser.add_argument("--attacked", type=int, default=512, help="how many images are attacked")
    parser.add_argument("--eps", type=float, default=1.36, help="L2 radius of the attack")
    parser.add_argument("--steps", type=int, default=20, help="steps of the attack")
    options = parser.parse_args()
    photos = Photos(options.data / "imagenette160-val.tar", options.cache)
    model = sl.load(options.network, weights=options.weights)
    filters = model.network.get_submodule("conv1").get_parameter("weight").detach()
    print(f"roughness of the first filters: {measure_roughness(filters).item():.3f}")
    for size in options.sizes:
        accuracy = measure_accuracy(model.logits, photos, size)
        print(f"{size} px: {accuracy:.2%} of {len(photos)} validation images", flush=True)
    if options.attacked:
        count = min(options.attacked, len(photos))
        clean, robust = measure_robust_accuracy(
            model, photos, count, eps=options.eps, steps=options.steps
        )
        print(
            f"{ATTACK_SIZE} px, {count} images: {clean:.2%} right, {robust:.2%} right after "
            f"{options.steps} steps inside an L2 ball of {options.eps}"
        )


if __name__ == "__main__":
    run_script(main)
