"""How many images withstand, and how small a change need be: ours against torchattacks and foolbox.

`python bench/robustness.py [--images N] [--norms linf l2 l1] [--smallest deepfool fmn cw]`: the
CIFAR-10 ResNet-20 of the data folder, the first N test images (200), the true class, the same
radius, steps, step size, loss and restarts. Robust accuracy counts images that are answered rightly
after the attack; the median length is over the images that are answered rightly before it (one that
an attack fails on counts as infinite).
"""

import argparse
import math
import time
import warnings
from collections.abc import Callable

import foolbox
import torch
import torchattacks
from resnet20 import images, loaded
from torch import Tensor

from sightline.methods.adversarial.attacks.external import LogitsModule
from sightline.methods.adversarial.attacks.goal import AttackGoal
from sightline.methods.adversarial.attacks.norm_ball import Norm, compute_image_norms
from sightline.methods.adversarial.attacks.registry import Attack

STEPS = 20
RADII: dict[Norm, tuple[float, ...]] = {
    "linf": (1 / 255, 2 / 255, 8 / 255),
    "l2": (0.05, 0.1, 0.5),
    "l1": (1.0, 2.0),
}


class Referees:
    """Both libraries on one network."""

    def __init__(self) -> None:
        self.model = loaded()
        self.network = LogitsModule(self.model).eval()
        self.foolbox = foolbox.PyTorchModel(self.network, bounds=(0, 1), device="cpu")

    def ours(self, image: Tensor, label: Tensor, **knobs: object) -> Tensor:
        return Attack(**knobs)(self.model, image, AttackGoal(label))[0]  # type: ignore[arg-type]

    def of_foolbox(
        self, attack: foolbox.attacks.base.Attack, image: Tensor, label: Tensor, eps: float | None
    ) -> Tensor:
        return attack(self.foolbox, image, foolbox.criteria.Misclassification(label), epsilons=eps)[
            1
        ]

    def right(self, image: Tensor, label: Tensor) -> Tensor:
        with torch.no_grad():
            return self.model.logits(image).argmax(1) == label


def bounded(
    referees: Referees, norm: Norm, eps: float
) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """The attacks of one norm and radius by what they are called in the table."""
    net, step = referees.network, 2.5 * eps / STEPS
    runs: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "pgd, ours": lambda x, y: referees.ours(x, y, name="pgd", norm=norm, eps=eps, steps=STEPS),
        "apgd, ours": lambda x, y: referees.ours(
            x, y, name="apgd", norm=norm, eps=eps, steps=STEPS
        ),
    }
    if norm == "linf":
        runs["fgsm, ours"] = lambda x, y: referees.ours(x, y, name="fgsm", eps=eps)
        runs["fgsm, torchattacks"] = torchattacks.FGSM(net, eps=eps)
        runs["fgsm, foolbox"] = lambda x, y: referees.of_foolbox(foolbox.attacks.FGSM(), x, y, eps)
        runs["pgd, torchattacks"] = torchattacks.PGD(net, eps=eps, alpha=step, steps=STEPS)
        runs["apgd, torchattacks"] = torchattacks.APGD(net, eps=eps, steps=STEPS)
    if norm == "l2":
        runs["pgd, torchattacks"] = torchattacks.PGDL2(net, eps=eps, alpha=step, steps=STEPS)
        runs["apgd, torchattacks"] = torchattacks.APGD(net, norm="L2", eps=eps, steps=STEPS)
    kind = {
        "linf": foolbox.attacks.LinfPGD,
        "l2": foolbox.attacks.L2PGD,
        "l1": foolbox.attacks.SparseL1DescentAttack,
    }[norm]
    runs["pgd, foolbox"] = lambda x, y: referees.of_foolbox(
        kind(abs_stepsize=step, steps=STEPS), x, y, eps
    )
    return runs


def smallest(
    referees: Referees, wanted: list[str]
) -> dict[tuple[str, Norm], Callable[[Tensor, Tensor], Tensor]]:
    """The attacks that look for the smallest change."""
    fools, lent = foolbox.attacks, torchattacks
    pairs: list[tuple[str, Norm, object]] = [
        ("deepfool", "l2", fools.L2DeepFoolAttack()),
        ("deepfool", "linf", fools.LinfDeepFoolAttack()),
        ("fmn", "l2", fools.L2FMNAttack()),
        ("fmn", "linf", fools.LInfFMNAttack()),
        ("fmn", "l1", fools.L1FMNAttack()),
        ("cw", "l2", fools.L2CarliniWagnerAttack(steps=100)),
    ]  # fmt: skip
    runs: dict[tuple[str, Norm], Callable[[Tensor, Tensor], Tensor]] = {}
    for name, norm, theirs in pairs:
        runs[f"{name}, ours", norm] = lambda x, y, n=name, m=norm: referees.ours(
            x, y, name=n, norm=m, eps=math.inf
        )
        runs[f"{name}, foolbox", norm] = lambda x, y, a=theirs: referees.of_foolbox(a, x, y, None)
    runs["cw c=1, torchattacks", "l2"] = lent.CW(referees.network, c=1, steps=900, lr=0.01)
    runs["deepfool, torchattacks", "l2"] = lent.DeepFool(referees.network)
    return {key: run for key, run in runs.items() if key[0].replace(",", " ").split()[0] in wanted}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument(
        "--norms",
        nargs="*",
        default=list(RADII),
        choices=list(RADII),
        help="of the bounded attacks; none for the smallest changes only",
    )
    parser.add_argument(
        "--smallest",
        nargs="*",
        default=["deepfool", "fmn", "cw"],
        help="attacks for the smallest change; cw takes 900 steps",
    )
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    referees, (image, label) = Referees(), images(asked.images)
    clean = referees.right(image, label)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {len(image)} images, "
        f"{float(clean.float().mean()):.1%} right before"
    )
    for norm in asked.norms:
        for eps in RADII[norm]:
            for name, run in sorted(bounded(referees, norm, eps).items()):
                began = time.perf_counter()
                found = run(image, label)
                robust, most = (
                    float(referees.right(found, label).float().mean()),
                    float(compute_image_norms(found - image, norm).max()),
                )
                print(
                    f"{norm} {eps:.4f} {name}: {robust:.1%} withstand ({most / eps:.4f} eps, "
                    f"{time.perf_counter() - began:.1f} s)",
                    flush=True,
                )
    for (name, norm), run in smallest(referees, asked.smallest).items():
        began = time.perf_counter()
        found = run(image, label)
        far = compute_image_norms(found - image, norm).masked_fill(
            referees.right(found, label), math.inf
        )[clean]
        lost = int(far.isinf().sum())
        print(
            f"{norm} {name}: median {float(far.median()):.5f}, {lost} failures "
            f"({time.perf_counter() - began:.1f} s)",
            flush=True,
        )


if __name__ == "__main__":
    main()
