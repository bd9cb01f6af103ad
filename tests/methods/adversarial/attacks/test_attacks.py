"""The attacks: exact on a linear classifier, their published steps re-derived, and none worse than those of other libraries."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sightline as sl
from sightline.methods.adversarial.attacks.apgd import schedule_checkpoints
from sightline.methods.adversarial.attacks.goal import ATTACK_LOSSES, AttackGoal, AttackRun
from sightline.methods.adversarial.attacks.minimum_norm import (
    anneal_by_cosine,
    round_adversarial_image,
)
from sightline.methods.adversarial.attacks.norm_ball import compute_image_norms
from sightline.methods.adversarial.attacks.registry import Attack

INF = math.inf


class Linear(nn.Module):
    """Four classes, a plane each."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 6 * 6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = (
            nn.Conv2d(3, 12, 3, padding=1),
            nn.Conv2d(12, 16, 3, stride=2),
            nn.Linear(16 * 4, 6),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(
            F.adaptive_avg_pool2d(F.silu(self.second(F.silu(self.first(x)))), 2).flatten(1)
        )


def loaded(network: nn.Module, images: Tensor, spread: float) -> sl.Model:
    """With seeded weights, and all classes seen among the images."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            fan = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread / fan**0.5)
        network.head.bias -= network((images - 0.5) / 0.25).mean(0)
    return sl.load(network, mean=(0.5,) * 3, std=(0.25,) * 3, size=images.shape[2], device="cpu")


def inner(count: int, side: int) -> Tensor:
    """Images far from black and white, where [0, 1] is in nobody's way."""
    return 0.5 + 0.1 * torch.randn(
        count, 3, side, side, generator=torch.Generator().manual_seed(2)
    ).clamp(-2, 2)


@pytest.fixture(scope="module")
def linear() -> sl.Model:
    return loaded(Linear(), inner(8, 6), 0.6)


@pytest.fixture(scope="module")
def conv() -> sl.Model:
    return loaded(Conv(), inner(30, 12), 2.0)


def away(model: sl.Model, image: Tensor) -> AttackGoal:
    return AttackGoal(model.logits(image).argmax(1))


def distances(model: sl.Model, image: Tensor, norm: str) -> Tensor:
    """To the nearest plane between the answer and another class, in closed form."""
    weight = model.module("head").weight / 0.25
    scores = model.logits(image)
    found = []
    for row, y in zip(scores, scores.argmax(1), strict=True):
        slopes = torch.cat([weight[:y], weight[y + 1 :]]) - weight[y]
        gaps = row[y] - torch.cat([row[:y], row[y + 1 :]])
        found.append(
            (gaps / slopes.norm(dim=1, p={"linf": 1, "l2": 2, "l1": torch.inf}[norm])).min()
        )
    return torch.stack(found)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_deepfool_is_exact_on_a_linear_classifier(linear: sl.Model, norm: str) -> None:
    image = inner(8, 6)
    exact = distances(linear, image, norm)
    found, run = Attack("deepfool", norm, INF)(linear, image, away(linear, image))
    inside = (
        ((found > 0) & (found < 1)).flatten(1).all(1)
    )  # an l1 step may need more room than one pixel has
    assert inside.sum() >= (8 if norm != "l1" else 1)
    assert away(linear, image).is_reached(linear.logits(found))[inside].all()
    assert torch.allclose(
        compute_image_norms(found - image, norm)[inside], exact[inside], rtol=2e-3, atol=2e-5
    )
    assert run.gradient_counts.max() <= 2 * 3, "one step, and one look that it is enough"


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_fmn_finds_the_nearest_plane(linear: sl.Model, norm: str) -> None:
    image = inner(8, 6)
    found, _ = Attack("fmn", norm, INF, steps=200)(linear, image, away(linear, image))
    assert away(linear, image).is_reached(linear.logits(found)).all()
    ratio = compute_image_norms(found - image, norm) / distances(linear, image, norm)
    assert ratio.min() > 1 - 1e-3
    assert ratio.median() < (1.02 if norm == "l2" else 1.1 if norm == "linf" else 2.5)


def test_carlini_wagner_finds_the_nearest_plane(linear: sl.Model) -> None:
    image = inner(8, 6)
    found, _ = Attack("cw", "l2", INF, steps=60)(linear, image, away(linear, image))
    assert away(linear, image).is_reached(linear.logits(found)).all()
    ratio = compute_image_norms(found - image, "l2") / distances(linear, image, "l2")
    assert ratio.min() > 1 - 1e-3
    assert ratio.median() < 1.02
    assert ratio.max() < 1.2


@pytest.mark.parametrize("name", ["deepfool", "fmn", "cw", "ascent"])
def test_the_nearest_of_a_chosen_class(conv: sl.Model, name: str) -> None:
    image = inner(6, 12)
    aim = AttackGoal(conv.logits(image).argmax(1), conv.logits(image).argmin(1))
    found, _ = Attack(name, "l2", INF, steps=60 if name == "cw" else None)(conv, image, aim)
    assert aim.is_reached(conv.logits(found)).all()
    assert found.min() >= 0
    assert found.max() <= 1


def test_smallest_changes_end_at_the_boundary(conv: sl.Model) -> None:
    image = inner(6, 12)
    for name in ("deepfool", "fmn"):
        found, _ = Attack(name, "l2", INF)(conv, image, away(conv, image))
        top = conv.logits(found).topk(2, dim=1).values
        clean = conv.logits(image).topk(2, dim=1).values
        assert ((top[:, 0] - top[:, 1]) < 0.02 * (clean[:, 0] - clean[:, 1])).all()
        assert not away(conv, image).is_reached(conv.logits(image + 0.99 * (found - image))).any()


def test_an_image_in_8_bits_still_fools(conv: sl.Model) -> None:
    image = (inner(12, 12) * 255).round() / 255
    found, run = Attack("fmn", "l2", INF)(conv, image, away(conv, image))
    file = round_adversarial_image(run, image, found, 50.0)
    assert torch.allclose((file * 255).round(), file * 255, atol=1e-3)
    assert (
        run.goal.is_reached(conv.logits(file)).float().mean()
        > run.goal.is_reached(conv.logits((found * 255).round() / 255)).float().mean()
    )


# ── projected steps ──


@pytest.mark.parametrize("target", [False, True])
def test_mifgsm_is_dongs_formula(conv: sl.Model, target: bool) -> None:
    image = inner(3, 12)
    scores = conv.logits(image)
    aim = AttackGoal(scores.argmax(1), scores.argmin(1) if target else None)
    x, velocity = image.clone(), torch.zeros_like(image)
    for _ in range(5):
        leaf = x.clone().requires_grad_()
        loss = (
            -F.cross_entropy(conv.logits(leaf), aim.target_labels)
            if target
            else F.cross_entropy(conv.logits(leaf), aim.source_labels)
        )
        (gradient,) = torch.autograd.grad(loss, leaf)
        velocity = 1.0 * velocity + gradient / gradient.abs().sum((1, 2, 3), keepdim=True)
        x = torch.minimum(
            torch.maximum(x + 0.02 / 5 * velocity.sign(), image - 0.02), image + 0.02
        ).clamp(0, 1)
    found, _ = Attack("mifgsm", "linf", 0.02, steps=5, early=False)(conv, image, aim)
    assert torch.allclose(found, x, atol=1e-6)


def test_fooled_images_leave_the_batch(conv: sl.Model) -> None:
    image = inner(30, 12)
    aim = away(conv, image)
    early, run = Attack("pgd", eps=0.05, steps=20)(conv, image, aim)
    whole, full = Attack("pgd", eps=0.05, steps=20, early=False)(conv, image, aim)
    assert full.gradient_counts.tolist() == [20] * 30
    assert run.gradient_counts.float().mean() < 12
    fooled = aim.is_reached(conv.logits(early))
    assert fooled.float().mean() >= aim.is_reached(conv.logits(whole)).float().mean() - 0.04
    gone = run.gradient_counts < 20
    assert aim.is_reached(conv.logits((early * 255).round() / 255))[gone].all(), (
        "they leave once a PNG of them fools too"
    )
    # Alone or together, an image takes the same way.
    start, _ = Attack("ifgsm", eps=0.05, steps=20)(conv, image, aim)
    for i in range(4):
        alone, _ = Attack("ifgsm", eps=0.05, steps=20)(
            conv, image[i : i + 1], AttackGoal(aim.source_labels[i : i + 1])
        )
        assert torch.allclose(alone[0], start[i], atol=1e-5)


def test_restarts_only_help_and_spare_the_fooled(conv: sl.Model) -> None:
    image = inner(30, 12)
    aim = away(conv, image)
    shares, counts = [], []
    for restarts in (1, 4):
        found, run = Attack("pgd", eps=0.006, steps=4, restarts=restarts)(conv, image, aim)
        shares.append(float(aim.is_reached(conv.logits(found)).float().mean()))
        counts.append(run.gradient_counts)
    assert 0 < shares[0] <= shares[1] < 1
    assert (counts[1] > 4).any()
    assert (counts[1] <= 4).any()


def test_checkpoints_are_the_papers() -> None:
    """Croce & Hein 2020, section 3: p₀ = 0, p₁ = 0.22, p_{j+1} = p_j + max(p_j − p_{j−1} − 0.03, 0.06), exactly where these are whole steps."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    assert list(schedule_checkpoints(100)) == [
        math.ceil(round(100 * share, 9)) for share in shares[1:] if share <= 1
    ]


@pytest.mark.parametrize("steps", [1, 2, 10, 20, 50, 130])
def test_checkpoints_are_those_of_the_authors_program(steps: int) -> None:
    """It counts down whole steps: 22 % of them, then 3 % fewer each time, at least 6 %, and none of these below one."""
    left, expected = max(int(0.22 * steps), 1), list[int]()
    period = left
    for step in range(1, steps + 1):
        left -= 1
        if left == 0:
            expected.append(step)
            left = period = max(period - max(int(0.03 * steps), 1), int(0.06 * steps), 1)
    marks = schedule_checkpoints(steps)
    assert list(marks) == expected
    assert list(itertools.accumulate(marks.values())) == expected, (
        "each knows how many steps it looks back on"
    )


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_apgd_is_no_worse_than_pgd(conv: sl.Model, norm: str) -> None:
    image = inner(30, 12)
    aim, eps = away(conv, image), {"linf": 0.006, "l2": 0.08, "l1": 0.8}[norm]
    loss = []
    for name in ("pgd", "apgd"):
        found, _ = Attack(name, norm, eps, steps=20, early=False)(conv, image, aim)
        loss.append(F.cross_entropy(conv.logits(found), aim.source_labels))
    assert loss[1] > 0.98 * loss[0]


# ── losses ──


def test_losses_are_their_formulas(conv: sl.Model) -> None:
    logits = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    away, wanted = torch.tensor([0, 1, 2, 3, 4]), torch.tensor([5, 0, 1, 2, 3])
    for z, y, t, *found in zip(
        logits,
        away,
        wanted,
        *(ATTACK_LOSSES[k](logits, AttackGoal(away)) for k in ATTACK_LOSSES),
        strict=True,
    ):
        best = max(z[i] for i in range(6) if i != y)
        ordered = sorted(z, reverse=True)
        expected = [
            -z.log_softmax(0)[y],
            best - z[y],
            -(z[y] - best) / (ordered[0] - ordered[2]),
            -z[y],
        ]
        assert torch.allclose(torch.stack(found), torch.stack(expected), atol=1e-5)
        one, aim = z[None], AttackGoal(y[None], t[None])
        best = max(z[i] for i in range(6) if i != t)
        expected = [
            z.log_softmax(0)[t],
            z[t] - best,
            -(z[y] - z[t]) / (ordered[0] - (ordered[2] + ordered[3]) / 2),
            z[t],
        ]
        assert torch.allclose(
            torch.cat([ATTACK_LOSSES[k](one, aim) for k in ATTACK_LOSSES]),
            torch.stack(expected),
            atol=1e-5,
        )


def test_dlr_does_not_mind_the_scale_of_the_scores(conv: sl.Model) -> None:
    logits, aim = (
        torch.randn(5, 6, generator=torch.Generator().manual_seed(0)),
        AttackGoal(torch.arange(5)),
    )
    assert torch.allclose(
        ATTACK_LOSSES["dlr"](logits, aim), ATTACK_LOSSES["dlr"](1000 * logits + 3, aim), atol=1e-4
    )
    with pytest.raises(sl.SightlineError, match=r"dlr.*compares 3 classes and this network has 2"):
        ATTACK_LOSSES["dlr"](logits[:, :2], AttackGoal(torch.zeros(5, dtype=torch.long)))


def test_annealing_goes_from_the_first_to_the_last_value() -> None:
    assert anneal_by_cosine(1.0, 0.01, 0.0) == pytest.approx(1.0)
    assert anneal_by_cosine(1.0, 0.01, 1.0) == pytest.approx(0.01)
    assert anneal_by_cosine(1.0, 0.0, 0.5) == pytest.approx(0.5)


# ── referees ──


@pytest.mark.parametrize(("name", "norm"), [("fmn", "l2"), ("fmn", "linf"), ("deepfool", "l2")])
def test_smallest_changes_are_no_longer_than_foolboxs(conv: sl.Model, name: str, norm: str) -> None:
    from sightline.methods.adversarial.attacks.external import run_peer_attack
    from sightline.methods.adversarial.attacks.norm_ball import NormBall

    image = inner(30, 12)
    aim = away(conv, image)
    peer = {"fmn": "FMNAttack", "deepfool": "DeepFoolAttack"}[name]
    library = "foolbox:" + {"l2": "L2", "linf": "LInf" if name == "fmn" else "Linf"}[norm] + peer
    ours, _ = Attack(name, norm, INF)(conv, image, aim)
    theirs = run_peer_attack(library, conv, NormBall(image, INF, norm), aim, steps=None, seed=0)
    assert aim.is_reached(conv.logits(ours)).all()
    failed = ~aim.is_reached(conv.logits(theirs))
    lengths = compute_image_norms(theirs - image, norm).masked_fill(failed, INF)
    assert compute_image_norms(ours - image, norm).median() <= lengths.median() * 1.01


@pytest.mark.parametrize("library", ["foolbox:LinfPGD", "torchattacks:APGD", "torchattacks:PGDL2"])
def test_bounded_attacks_fool_no_less_than_theirs(conv: sl.Model, library: str) -> None:
    image = inner(30, 12)
    aim, norm, name = (
        away(conv, image),
        "l2" if "L2" in library else "linf",
        "apgd" if "APGD" in library else "pgd",
    )
    eps = 0.08 if norm == "l2" else 0.006
    shares = []
    for peer in (None, library):
        found, _ = Attack(name, norm, eps, steps=20, peer=peer)(conv, image, aim)
        shares.append(int(aim.is_reached(conv.logits(found)).sum()))
    assert shares[0] >= shares[1] - 1
    assert 0 < shares[0] < 30


def test_the_record_tells_the_callback_every_step(conv: sl.Model) -> None:
    seen: list[tuple[int, int]] = []
    Attack("fmn", "l2", INF, steps=7)(
        conv,
        inner(2, 12),
        away(conv, inner(2, 12)),
        lambda step: seen.append((step.index, step.total)),
    )
    assert seen == [(i, 7) for i in range(1, 8)]
    run = AttackRun(conv, away(conv, inner(2, 12)), "margin", 3)
    assert not run.is_stopped
