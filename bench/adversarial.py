"""PGD-20 on a batch: ours against twenty bare forward and backward passes, torchattacks and
foolbox.

`python bench/adversarial.py [--images N] [--rounds N]`: the CIFAR-10 ResNet-20 of the data folder,
eps 2/255, true classes, one warm-up of each, then all take turns; medians. What leaves the batch
early is counted apart. The libraries run on our network and on the plain one.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import foolbox
import torch
import torchattacks
from resnet20 import images, loaded, network
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.methods.adversarial.attacks.external import LogitsModule
from sightline.methods.adversarial.attacks.goal import AttackGoal
from sightline.methods.adversarial.attacks.registry import Attack

STEPS, EPS = 20, 2 / 255


def bare(network: Callable[[Tensor], Tensor], image: Tensor, label: Tensor) -> Tensor:
    """Twenty gradients, and nothing done with them."""
    for _ in range(STEPS):
        leaf = image.clone().requires_grad_()
        torch.autograd.grad(F.cross_entropy(network(leaf), label, reduction="sum"), leaf)
    return image


class Usual(nn.Module):
    """The network as a user of these libraries has it: contiguous, its weights trainable, with a
    normalization before it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body, facts = network()
        self.mean, self.std = (
            torch.tensor(facts[name]).view(1, 3, 1, 1) for name in ("mean", "std")
        )

    def forward(self, image: Tensor) -> Tensor:
        """Logits N×10 of images in [0, 1]."""
        return self.body((image - self.mean) / self.std)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    model, (image, label) = loaded(), images(asked.images)
    ours = LogitsModule(model).eval()
    usual = Usual().eval()
    victim = foolbox.PyTorchModel(ours, bounds=(0, 1), device="cpu")
    unchanged = foolbox.PyTorchModel(usual, bounds=(0, 1), device="cpu")
    theirs = foolbox.attacks.LinfPGD(abs_stepsize=2.5 * EPS / STEPS, steps=STEPS)
    runs: dict[str, Callable[[], Tensor]] = {
        "twenty bare forward and backward passes": lambda: bare(
            lambda x: model.network(model.normalize(x)), image, label
        ),
        "pgd-20, ours": lambda: Attack("pgd", eps=EPS, steps=STEPS, early=False)(
            model, image, AttackGoal(label)
        )[0],
        "pgd-20, ours, fooled images leave": lambda: Attack("pgd", eps=EPS, steps=STEPS)(
            model, image, AttackGoal(label)
        )[0],
        "pgd-20, torchattacks on our network": lambda: torchattacks.PGD(
            ours, eps=EPS, alpha=2.5 * EPS / STEPS, steps=STEPS
        )(image, label),
        "pgd-20, foolbox on our network": lambda: theirs(
            victim, image, foolbox.criteria.Misclassification(label), epsilons=EPS
        )[1],
        "pgd-20, torchattacks as its user has it": lambda: torchattacks.PGD(
            usual, eps=EPS, alpha=2.5 * EPS / STEPS, steps=STEPS
        )(image, label),
        "pgd-20, foolbox as its user has it": lambda: theirs(
            unchanged, image, foolbox.criteria.Misclassification(label), epsilons=EPS
        )[1],
    }
    robust = {
        name: float((model.logits(run()).argmax(1) == label).float().mean())
        for name, run in runs.items()
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(asked.rounds):
        for name, run in runs.items():
            began = time.process_time()
            run()
            times[name].append(time.process_time() - began)
    least = statistics.median(times["twenty bare forward and backward passes"])
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {len(image)} images, eps "
        f"{EPS * 255:g}/255, medians of {asked.rounds}"
    )
    for name, values in times.items():
        median = statistics.median(values)
        print(
            f"{name}: {median:.2f} s of processor time, {median / least:.3f} times the bare "
            f"passes; {robust[name]:.1%} withstand"
        )


if __name__ == "__main__":
    main()
