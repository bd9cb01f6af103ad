"""APGD from many random starts: ours against torchattacks on the CIFAR-10 ResNet-20 of the data
folder.

`python bench/apgd.py [--images N] [--seeds N] [--starts N] [--losses ...]`: how many of the first N
test images (200) are answered rightly after 20 steps, over seeds of both sides. Then the images on
which these runs differ, from many starts each: the share of starts that leave them, which is what a
single run's luck is made of. Then 100 steps on the images that any run of 20 steps left.
"""

import argparse
import statistics
import warnings
from collections.abc import Callable

import torch
import torchattacks
from resnet20 import images
from robustness import Referees
from torch import Tensor

from sightline.methods.adversarial.attacks.goal import AttackLoss
from sightline.methods.adversarial.attacks.norm_ball import Norm

RADII: tuple[tuple[Norm, str, float], ...] = (
    ("linf", "0.5/255", 0.5 / 255),
    ("linf", "1/255", 1 / 255),
    ("linf", "2/255", 2 / 255),
    ("l2", "0.05", 0.05),
    ("l2", "0.1", 0.1),
)  # fmt: skip
LOSSES: tuple[AttackLoss, ...] = ("cross_entropy", "dlr")
Run = Callable[[Tensor, Tensor, int, int], Tensor]  # images, classes, steps, seed


def sides(referees: Referees, norm: Norm, eps: float, loss: AttackLoss) -> dict[str, Run]:
    """Both attacks."""

    def theirs(image: Tensor, label: Tensor, steps: int, seed: int) -> Tensor:
        short = "ce" if loss == "cross_entropy" else "dlr"
        attack = torchattacks.APGD(
            referees.network, norm=norm.capitalize(), eps=eps, steps=steps, seed=seed, loss=short
        )
        return attack(image.contiguous(), label)

    def ours(image: Tensor, label: Tensor, steps: int, seed: int) -> Tensor:
        return referees.ours(
            image, label, name="apgd", norm=norm, eps=eps, steps=steps, loss=loss, seed=seed
        )

    return {"sightline": ours, "torchattacks": theirs}


def left(
    referees: Referees, run: Run, data: tuple[Tensor, Tensor], steps: int, seeds: int
) -> Tensor:
    """Which images each seed leaves, seeds×N."""
    return torch.stack([referees.right(run(*data, steps, seed), data[1]) for seed in range(seeds)])


def told(found: dict[str, Tensor]) -> str:
    """Mean number of images left and its range, of both."""
    counts = {name: rows.sum(1).tolist() for name, rows in found.items()}
    return ", ".join(
        f"{name} {statistics.mean(count):.1f} ({min(count)} to {max(count)})"
        for name, count in counts.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--starts", type=int, default=128)
    parser.add_argument("--losses", nargs="*", default=list(LOSSES), choices=list(LOSSES))
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    referees, (image, label) = Referees(), images(asked.images)
    for loss in asked.losses:
        for norm, shown, eps in RADII:
            runs = sides(referees, norm, eps, loss)
            found = {
                name: left(referees, run, (image, label), 20, asked.seeds)
                for name, run in runs.items()
            }
            every = torch.cat(list(found.values()))
            print(f"{norm} {shown} {loss}, 20 steps, left: {told(found)}", flush=True)
            chance = (every.any(0) & ~every.all(0)).nonzero()[:, 0]
            if len(chance):
                many = chance.repeat_interleave(asked.starts)
                # Another seed: the starts that chose these images would speak for themselves.
                ends = {
                    name: referees.right(run(image[many], label[many], 20, 1000), label[many])
                    for name, run in runs.items()
                }
                sums = ", ".join(
                    f"{name} {float(end.float().sum()) / asked.starts:.2f}"
                    for name, end in ends.items()
                )
                print(
                    f"  of {len(chance)} on which chance decides, from {asked.starts} starts "
                    f"each: {sums}",
                    flush=True,
                )
            if (hard := every.any(0).nonzero()[:, 0]).numel():
                longer = {
                    name: left(referees, run, (image[hard], label[hard]), 100, asked.seeds)
                    for name, run in runs.items()
                }
                print(f"  100 steps: {told(longer)}", flush=True)


if __name__ == "__main__":
    main()
