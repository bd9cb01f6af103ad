"""torchattacks and foolbox as referees on a real network: the CIFAR-10 ResNet-20 of the data folder."""

import math
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT
from torch import Tensor

import sightline as sl
from sightline.methods.adversarial.attacks.external import LogitsModule
from sightline.methods.adversarial.attacks.goal import AttackGoal, AttackLoss
from sightline.methods.adversarial.attacks.norm_ball import Norm, compute_image_norms
from sightline.methods.adversarial.attacks.registry import Attack, AttackName

BENCH = ROOT / "bench"
STEPS = 10
Victim = tuple[sl.Model, Tensor, AttackGoal]


@pytest.fixture(scope="module")
def cifar(data: Path) -> Victim:
    """The network, the first 200 test images, and the aim to be wrong."""
    for library in ("foolbox", "torchattacks"):
        pytest.importorskip(library)
    if (
        not (data / "nets" / "cifar10_resnet20.safetensors").is_file()
        or not (data / "cifar10" / "cifar10_test.npz").is_file()
    ):
        pytest.skip(f"no CIFAR-10 network or test images in {data}")
    sys.path.insert(0, str(BENCH))
    try:
        from resnet20 import images, loaded
    finally:
        sys.path.remove(str(BENCH))
    image, label = images(200, data)
    return loaded(data), image, AttackGoal(label)


@pytest.fixture(scope="module")
def victim(cifar: Victim) -> Victim:
    """Twelve images that the network answers rightly."""
    model, image, aim = cifar
    right = (model.logits(image[:20]).argmax(1) == aim.source_labels[:20]).nonzero()[:12, 0]
    return model, image[right], aim.select_images(right)


def of_torchattacks(victim: Victim, name: str, steps: int = STEPS, **options: Any) -> Tensor:
    """What an attack of torchattacks makes of the images."""
    import torchattacks

    model, image, aim = victim
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        return getattr(torchattacks, name)(LogitsModule(model).eval(), steps=steps, **options)(
            image, aim.source_labels
        ).detach()


def of_foolbox(victim: Victim, name: str, eps: float | None = None, **options: Any) -> Tensor:
    """What an attack of foolbox makes of the images."""
    import foolbox

    model, image, aim = victim
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        network = foolbox.PyTorchModel(LogitsModule(model).eval(), bounds=(0, 1), device="cpu")
        return getattr(foolbox.attacks, name)(**options)(
            network, image, foolbox.criteria.Misclassification(aim.source_labels), epsilons=eps
        )[1]


def withstand(victim: Victim, found: Tensor) -> int:
    """How many images are still answered rightly."""
    model, _, aim = victim
    return int((~aim.is_reached(model.logits(found))).sum())


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.6 / 255), ("l2", 0.05)])
def test_pgd_leaves_no_more_images_than_the_referees(
    victim: Victim, norm: Norm, eps: float
) -> None:
    """The same radius, steps, step size and loss, one random start each; one image more is luck of the start."""
    model, image, aim = victim
    found, _ = Attack("pgd", norm, eps, steps=STEPS)(model, image, aim)
    assert compute_image_norms(found - image, norm).max() <= eps * (1 + 1e-4)
    assert 0 < withstand(victim, found) < len(image), "the radius tells attacks apart"
    theirs = of_torchattacks(victim, "PGDL2" if norm == "l2" else "PGD", eps=eps, alpha=0.25 * eps)
    others = of_foolbox(
        victim, "L2PGD" if norm == "l2" else "LinfPGD", eps, rel_stepsize=0.25, steps=STEPS
    )
    assert withstand(victim, found) <= min(withstand(victim, theirs), withstand(victim, others)) + 1


@pytest.mark.parametrize(
    ("norm", "eps", "loss", "places"),
    [
        ("linf", 0.5 / 255, "cross_entropy", (45, 183, 199)),
        ("linf", 0.5 / 255, "dlr", (45, 183, 199)),
        ("linf", 1 / 255, "dlr", (185,)),
        ("l2", 0.05, "cross_entropy", (22, 64)),
        ("l2", 0.05, "dlr", (22, 64)),
    ],
)
def test_apgd_leaves_no_more_images_than_torchattacks(
    cifar: Victim, norm: Norm, eps: float, loss: AttackLoss, places: tuple[int, ...]
) -> None:
    """The images of the first 200 on which luck decides at these radii, each from 12 random starts: 20 steps.

    What all starts leave or all starts fool tells nothing. In linf the two start nearly alike; in l2 theirs starts on the sphere
    and ours inside, and each has its own luck.
    """
    model, image, aim = cifar
    repeated, luck = torch.tensor(places).repeat_interleave(12), 1 if norm == "linf" else 4
    crowd = model, image[repeated], aim.select_images(repeated)
    found, _ = Attack("apgd", norm, eps, steps=20, loss=loss)(*crowd)
    assert compute_image_norms(found - crowd[1], norm).max() <= eps * (1 + 1e-4)
    theirs = of_torchattacks(
        crowd,
        "APGD",
        20,
        norm=norm.capitalize(),
        eps=eps,
        loss="ce" if loss == "cross_entropy" else "dlr",
    )
    assert withstand(crowd, found) <= withstand(crowd, theirs) + luck


def shorter(victim: Victim, ours: Tensor, theirs: Tensor, norm: Norm) -> bool:
    """Whether our changes all fool and are no longer in the middle than the referee's, where failures count as infinite."""
    model, image, aim = victim
    lengths = compute_image_norms(theirs - image, norm).masked_fill(
        ~aim.is_reached(model.logits(theirs)), math.inf
    )
    return (
        withstand(victim, ours) == 0
        and float(compute_image_norms(ours - image, norm).median())
        <= float(lengths.median()) * 1.001
    )


@pytest.mark.parametrize(
    ("name", "norm", "referee", "steps"),
    [
        ("fmn", "linf", "LInfFMNAttack", 30),
        ("fmn", "l2", "L2FMNAttack", 30),
        ("deepfool", "l2", "L2DeepFoolAttack", 50),
    ],
)
def test_the_smallest_changes_are_no_longer_than_foolboxs(
    victim: Victim, name: AttackName, norm: Norm, referee: str, steps: int
) -> None:
    ours, _ = Attack(name, norm, math.inf, steps=steps)(*victim)
    assert shorter(victim, ours, of_foolbox(victim, referee, steps=steps), norm)


def test_carlini_wagner_is_no_longer_than_foolboxs(
    victim: Victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four images, five searches of 20 steps: both begin with the same weight and learn it in the same way."""
    model, image, aim = victim
    few = (model, image[:4], aim.select_images(torch.arange(4)))
    monkeypatch.setattr("sightline.methods.adversarial.attacks.carlini_wagner.WEIGHT_SEARCHES", 5)
    ours, _ = Attack("cw", "l2", math.inf, steps=20)(*few)
    assert shorter(
        few,
        ours,
        of_foolbox(few, "L2CarliniWagnerAttack", binary_search_steps=5, steps=20, stepsize=0.01),
        "l2",
    )
