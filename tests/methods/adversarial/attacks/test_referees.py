"""torchattacks and foolbox as referees on the CIFAR-10 ResNet-20 of the data folder."""

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
    """The network, the first 200 test images, and the goal of a wrong class."""
    for library in ("foolbox", "torchattacks"):
        pytest.importorskip(library)
    weights = data / "nets" / "cifar10_resnet20.safetensors"
    test_images = data / "cifar10" / "cifar10_test.npz"
    if not weights.is_file() or not test_images.is_file():
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
    """Twelve images that the network classifies correctly."""
    model, image, goal = cifar
    is_correct = model.logits(image[:20]).argmax(1) == goal.source_labels[:20]
    rows = is_correct.nonzero()[:12, 0]
    return model, image[rows], goal.select_images(rows)


def run_torchattacks(victim: Victim, name: str, steps: int = STEPS, **options: Any) -> Tensor:
    """The images as changed by an attack of torchattacks."""
    import torchattacks

    model, image, goal = victim
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        attack = getattr(torchattacks, name)(LogitsModule(model).eval(), steps=steps, **options)
        return attack(image, goal.source_labels).detach()


def run_foolbox(victim: Victim, name: str, eps: float | None = None, **options: Any) -> Tensor:
    """The images as changed by an attack of foolbox."""
    import foolbox

    model, image, goal = victim
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        network = foolbox.PyTorchModel(LogitsModule(model).eval(), bounds=(0, 1), device="cpu")
        attack = getattr(foolbox.attacks, name)(**options)
        criterion = foolbox.criteria.Misclassification(goal.source_labels)
        _, clipped, _ = attack(network, image, criterion, epsilons=eps)
        return clipped


def count_withstanding(victim: Victim, changed: Tensor) -> int:
    """How many images are still classified correctly."""
    model, _, goal = victim
    return int((~goal.is_reached(model.logits(changed))).sum())


@pytest.mark.parametrize(
    ("norm", "eps", "torchattacks_name", "foolbox_name"),
    [("linf", 0.6 / 255, "PGD", "LinfPGD"), ("l2", 0.05, "PGDL2", "L2PGD")],
)
def test_pgd_leaves_no_more_images_than_the_referees(
    victim: Victim, norm: Norm, eps: float, torchattacks_name: str, foolbox_name: str
) -> None:
    """The same radius, steps, step size and loss, and one random start each.

    One image more is luck of the start.
    """
    model, image, goal = victim
    ours, _ = Attack("pgd", norm, eps, steps=STEPS)(model, image, goal)
    assert compute_image_norms(ours - image, norm).max() <= eps * (1 + 1e-4)
    count = count_withstanding(victim, ours)
    assert 0 < count < len(image), "the radius tells attacks apart"
    of_torchattacks = run_torchattacks(victim, torchattacks_name, eps=eps, alpha=0.25 * eps)
    of_foolbox = run_foolbox(victim, foolbox_name, eps, rel_stepsize=0.25, steps=STEPS)
    peer_counts = [count_withstanding(victim, theirs) for theirs in (of_torchattacks, of_foolbox)]
    assert count <= min(peer_counts) + 1


@pytest.mark.parametrize(
    ("norm", "eps", "loss", "rows"),
    [
        ("linf", 0.5 / 255, "cross_entropy", (45, 183, 199)),
        ("linf", 0.5 / 255, "dlr", (45, 183, 199)),
        ("linf", 1 / 255, "dlr", (185,)),
        ("l2", 0.05, "cross_entropy", (22, 64)),
        ("l2", 0.05, "dlr", (22, 64)),
    ],
)
def test_apgd_leaves_no_more_images_than_torchattacks(
    cifar: Victim, norm: Norm, eps: float, loss: AttackLoss, rows: tuple[int, ...]
) -> None:
    """20 steps on the images on which luck decides at these radii, each from 12 random starts.

    Images that all starts leave or all starts fool tell nothing. In linf both start nearly alike;
    in l2 theirs starts on the sphere and ours inside, and each has its own luck.
    """
    model, image, goal = cifar
    repeated_rows = torch.tensor(rows).repeat_interleave(12)
    luck = 1 if norm == "linf" else 4
    repeated = model, image[repeated_rows], goal.select_images(repeated_rows)
    ours, _ = Attack("apgd", norm, eps, steps=20, loss=loss)(*repeated)
    assert compute_image_norms(ours - repeated[1], norm).max() <= eps * (1 + 1e-4)
    theirs = run_torchattacks(
        repeated,
        "APGD",
        20,
        norm=norm.capitalize(),
        eps=eps,
        loss="ce" if loss == "cross_entropy" else "dlr",
    )
    assert count_withstanding(repeated, ours) <= count_withstanding(repeated, theirs) + luck


def check_no_longer(victim: Victim, ours: Tensor, theirs: Tensor, norm: Norm) -> None:
    """All our changes fool, and their median is no longer than the referee's.

    Failures of the referee count as infinite.
    """
    model, image, goal = victim
    assert count_withstanding(victim, ours) == 0
    has_failed = ~goal.is_reached(model.logits(theirs))
    their_norms = compute_image_norms(theirs - image, norm).masked_fill(has_failed, math.inf)
    our_norms = compute_image_norms(ours - image, norm)
    assert float(our_norms.median()) <= float(their_norms.median()) * 1.001


@pytest.mark.parametrize(
    ("name", "norm", "referee", "steps"),
    [
        ("fmn", "linf", "LInfFMNAttack", 30),
        ("fmn", "l2", "L2FMNAttack", 30),
        ("deepfool", "l2", "L2DeepFoolAttack", 50),
    ],
)
def test_smallest_changes_are_no_longer_than_foolboxs(
    victim: Victim, name: AttackName, norm: Norm, referee: str, steps: int
) -> None:
    ours, _ = Attack(name, norm, math.inf, steps=steps)(*victim)
    check_no_longer(victim, ours, run_foolbox(victim, referee, steps=steps), norm)


def test_carlini_wagner_is_no_longer_than_foolboxs(
    victim: Victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four images and five searches of 20 steps; both begin with the same weight."""
    model, image, goal = victim
    four = (model, image[:4], goal.select_images(torch.arange(4)))
    monkeypatch.setattr("sightline.methods.adversarial.attacks.carlini_wagner.WEIGHT_SEARCHES", 5)
    ours, _ = Attack("cw", "l2", math.inf, steps=20)(*four)
    theirs = run_foolbox(
        four, "L2CarliniWagnerAttack", binary_search_steps=5, steps=20, stepsize=0.01
    )
    check_no_longer(four, ours, theirs, "l2")
