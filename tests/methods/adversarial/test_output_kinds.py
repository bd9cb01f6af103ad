"""Attacks on what is no softmax: one logit, several labels, scores; gray networks, other channels.

The oracle is plain autograd on the network itself.
"""

from collections.abc import Callable

import pytest
import torch
from helpers import make_input
from torch import Tensor, nn
from torch.nn import functional as F

import sightline as sl
from sightline.methods.adversarial.attacks.goal import ATTACK_LOSSES, ScoreGoal, make_class_goal
from sightline.methods.adversarial.attacks.norm_ball import Norm, compute_image_norms

SIZE = (18, 26)
EPS = 0.03


class Pyramid(nn.Module):
    """Two scales of a SiLU network, without a module for its activations."""

    def __init__(self, outputs: int, channels: int = 3, ending: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(outputs + channels)
        self.fine = nn.Conv2d(channels, 6, 5, stride=2)
        self.coarse = nn.Conv2d(6, 7, 3)
        self.head = nn.Linear(13, outputs)
        self.ending = ending or nn.Identity()
        with torch.no_grad():
            self.head.weight.mul_(6)

    def forward(self, x: Tensor) -> Tensor:
        fine = F.silu(self.fine(x))
        coarse = F.silu(self.coarse(fine))
        pooled = torch.cat([fine.mean((2, 3)), coarse.amax((2, 3))], 1)
        return self.ending(self.head(pooled))


def load(network: nn.Module, **options: object) -> sl.Model:
    mean = options.pop("mean", (0.0,) * 3)
    std = (1.0,) * len(mean)  # type: ignore[arg-type]
    return sl.load(network.eval(), mean=mean, std=std, size=SIZE, **options)  # type: ignore[arg-type]


def make_images(count: int = 3, channels: int = 3) -> Tensor:
    return make_input(count, channels, *SIZE).mul(0.6).sigmoid()


def step_by_hand(image: Tensor, compute_loss: Callable[[Tensor], Tensor]) -> Tensor:
    """One FGSM step that increases a loss."""
    leaf = image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(compute_loss(leaf).sum(), leaf)
    return (image + EPS * gradient.sign()).clamp(0, 1)


def run_fgsm(model: sl.Model, image: Tensor, **options: object) -> sl.Result:
    return sl.adversarial(model, image, attack="fgsm", eps=EPS, early=False, **options)  # type: ignore[arg-type]


# ── success ──


@pytest.mark.parametrize("ending", [None, nn.Sigmoid()], ids=["logit", "sigmoid"])
@pytest.mark.parametrize("attack", ["pgd", "apgd", "fmn", "deepfool", "cw"])
def test_one_logit_is_fooled_where_its_sign_changes(attack: str, ending: nn.Module | None) -> None:
    network = Pyramid(1, ending=ending)
    model = load(network, labels=["cat"])
    image = make_images()
    eps = 0.2 if attack in ("pgd", "apgd") else None
    result = sl.adversarial(model, image, attack=attack, eps=eps, steps=12)  # type: ignore[arg-type]
    middle = 0.0 if ending is None else 0.5
    clean_sides = network(image)[:, 0] > middle
    sides = network(result.values["image"])[:, 0] > middle
    assert model.output_kind == "binary"
    assert result.values["success"].any()
    assert torch.equal(result.values["success"], sides != clean_sides)


@pytest.mark.parametrize("ending", [None, nn.Sigmoid()], ids=["declared", "sigmoid"])
@pytest.mark.parametrize("attack", ["pgd", "fmn", "deepfool"])
@pytest.mark.parametrize("target", [None, 2], ids=["away", "to"])
def test_several_labels_cross_one_half(
    attack: str, target: int | None, ending: nn.Module | None
) -> None:
    network = Pyramid(4)
    with torch.no_grad():
        network.head.bias.copy_(torch.tensor([0.3, 0.1, -0.4, 0.2]))
    whole = network if ending is None else nn.Sequential(network, ending)
    model = load(whole, output_kind="multilabel" if ending is None else None)
    assert model.output_kind == "multilabel"
    image = make_images()
    eps = 0.5 if attack == "pgd" else None
    values = sl.adversarial(
        model,
        image,
        target=target,
        attack=attack,
        eps=eps,
        steps=40,
    ).values  # type: ignore[arg-type]
    logits = network(values["image"]).detach()
    if target is None:
        expected = logits.gather(1, network(image).argmax(1, keepdim=True))[:, 0] < 0
    else:
        expected = logits[:, target] > 0
    assert torch.equal(values["success"], expected)
    assert values["success"].any()


def test_a_label_that_is_nowhere_cannot_be_taken_away() -> None:
    network = Pyramid(3)
    with torch.no_grad():
        network.head.bias.fill_(-9.0)
    model = load(network, output_kind="multilabel")
    with pytest.raises(sl.SightlineError, match="none to take away"):
        sl.adversarial(model, make_images())
    with pytest.raises(sl.SightlineError, match="choose margin"):
        sl.adversarial(model, make_images(), target=1, loss="dlr")


@pytest.mark.parametrize("kind", ["regression", "embedding"])
@pytest.mark.parametrize(
    "method", [sl.adversarial, sl.boundary, sl.universal, sl.adversarial_patch, sl.transfer]
)
def test_a_network_without_classes_is_refused(method: Callable[..., sl.Result], kind: str) -> None:
    model = load(Pyramid(6), output_kind=kind)
    with pytest.raises(sl.SightlineError, match=r"needs classes.*output_kind='logits'"):
        method(model, make_images())


# ── losses and captions ──


def test_probabilities_at_every_place_need_a_score() -> None:
    masks = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid())
    with pytest.raises(sl.SightlineError, match=r"probability of each label at every .*sl\.pixel"):
        sl.adversarial(load(masks), make_images(1))
    asked = sl.adversarial(load(masks), make_images(1), score=sl.pixel(4, 9, 2), steps=2)
    assert asked.values["image"].shape == (1, 3, *SIZE)
    depth = nn.Sequential(nn.Conv2d(3, 1, 3), nn.Softplus())
    with pytest.raises(sl.SightlineError, match=r"an attack needs classes; .* at every place"):
        sl.adversarial(load(depth), make_images(1))


def test_losses_of_independent_labels_are_binary_cross_entropies() -> None:
    model = load(Pyramid(4), output_kind="multilabel")
    logits = make_input(5, 4)
    source = torch.tensor([0, 1, 2, 3, 1])
    target = torch.tensor([3, 3, 0, 1, 2])
    for labels, sign in ((None, 1), (target, -1)):
        goal = make_class_goal(model, source, labels)
        column = source if labels is None else labels
        own = logits[torch.arange(5), column]
        expected = sign * F.binary_cross_entropy_with_logits(own, torch.ones(5), reduction="none")
        torch.testing.assert_close(ATTACK_LOSSES["cross_entropy"](logits, goal), expected)
        assert torch.equal(ATTACK_LOSSES["margin"](logits, goal), -sign * own)


def test_captions_tell_the_networks_own_probability() -> None:
    """A second softmax over the columns −z and z would tell sigmoid(2z)."""
    network = Pyramid(1)
    result = run_fgsm(load(network, labels=["cat"]), make_images(1))
    probability = float(network(make_images(1)).detach().sigmoid())
    name = "cat" if probability > 0.5 else "not cat"
    share = max(probability, 1 - probability)
    assert result.captions["adversarial"].startswith(f"{name} ({share:.0%})")

    network = Pyramid(4, ending=nn.Softmax(1))
    result = run_fgsm(load(network), make_images(1))
    share = float(network(make_images(1)).detach().amax())
    assert f"({share:.0%}) on the left" in result.captions["adversarial"]


def test_the_curve_follows_the_networks_own_probability() -> None:
    network = Pyramid(1, ending=nn.Sigmoid())
    image = make_images(2)
    values = run_fgsm(load(network), image, curve=2).values
    is_yes = network(image)[:, 0] > 0.5
    own = torch.where(is_yes, network(image)[:, 0], 1 - network(image)[:, 0])
    mean = float(own.detach().mean())
    assert float(values["curve_probability"][0]) == pytest.approx(mean, abs=1e-5)


# ── scores ──


@pytest.mark.parametrize("direction", ["lower", "higher"])
def test_a_score_moves_along_its_gradient(direction: str) -> None:
    network = Pyramid(3)
    model = load(network, output_kind="regression", unit="years")
    image = make_images()
    sign = 1 if direction == "higher" else -1
    result = run_fgsm(model, image, score="regression(1)", direction=direction)
    values = result.values
    expected = step_by_hand(image, lambda x: sign * network(x)[:, 1])
    torch.testing.assert_close(values["image"], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(values["clean_score"], network(image)[:, 1].detach())
    torch.testing.assert_close(
        values["score"], network(expected)[:, 1].detach(), atol=1e-5, rtol=1e-5
    )
    assert (sign * (values["score"] - values["clean_score"]) > 0).all()
    assert (
        f"output 1 (years): {float(values['clean_score'][0]):.3g} on the left"
        in (result.captions["adversarial"])
    )
    assert result.recipe["knobs"]["score"] == "regression(1)"


@pytest.mark.parametrize("attack", ["pgd", "fmn", "deepfool", "cw"])
def test_success_is_a_change_by_half(attack: str) -> None:
    network = Pyramid(3)
    image = make_images()
    eps = 0.3 if attack == "pgd" else None
    values = sl.adversarial(
        load(network),
        image,
        score=sl.unit("coarse", 4),
        direction="higher",
        attack=attack,
        eps=eps,
        steps=30,
    ).values  # type: ignore[arg-type]

    def measure(x: Tensor) -> Tensor:
        return network.coarse(F.silu(network.fine(x))).mean((2, 3))[:, 4].detach()

    change = measure(values["image"]) - measure(image)
    is_enough = change >= measure(image).abs() / 2 - 1e-6
    assert torch.equal(values["success"], is_enough)
    assert values["success"].any()


def test_a_score_of_zero_has_to_change_at_all() -> None:
    goal = ScoreGoal(torch.zeros(4).long(), clean_scores=torch.tensor([0.0, 0.0, 4.0, -4.0]))
    scores = torch.tensor([[0.0], [-0.1], [2.0], [-5.9]])
    assert goal.is_reached(scores).tolist() == [False, True, True, False]
    assert goal.select_images(torch.tensor([1, 3])).is_reached(scores[[1, 3]]).tolist() == [
        True,
        False,
    ]


def test_a_class_and_a_score_do_not_go_together() -> None:
    model = load(Pyramid(3))
    with pytest.raises(sl.SightlineError, match="leave out one"):
        sl.adversarial(model, make_images(), score="unit('fine', 1)", target=2)
    with pytest.raises(sl.SightlineError, match="give score="):
        sl.adversarial(model, make_images(), direction="higher")
    with pytest.raises(sl.SightlineError, match="leave out peer"):
        sl.adversarial(model, make_images(), score="unit('fine', 1)", peer="foolbox:LinfPGD")


# ── gray networks ──


def gray_levels(image: Tensor) -> Tensor:
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    return (image * weights).sum(1, keepdim=True)


@pytest.mark.parametrize("attack", ["pgd", "mifgsm", "apgd", "fmn", "deepfool", "cw"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_gray_networks_get_gray_changes(attack: str, norm: Norm) -> None:
    if attack == "cw" and norm != "l2":
        pytest.skip("cw has only l2")
    network = Pyramid(5, channels=1)
    model = load(network, mean=(0.0,))
    assert model.is_gray
    image = make_images()
    eps = {"linf": 0.02, "l2": 0.5, "l1": 9.0}[norm]
    is_bounded = attack in ("pgd", "mifgsm", "apgd")
    values = sl.adversarial(
        model,
        image,
        attack=attack,
        norm=norm,
        eps=eps if is_bounded else None,
        steps=8,
        early=False,
    ).values  # type: ignore[arg-type]
    levels = gray_levels(image)
    for key in ("image", "image_8bit"):
        assert torch.equal(values[key], values[key][:, :1].expand_as(image))
    change = values["image"] - levels.expand_as(image)
    assert float(change.abs().max()) > 1e-4
    torch.testing.assert_close(
        values[norm], compute_image_norms(change, norm), atol=1e-4, rtol=1e-4
    )
    if is_bounded:
        assert (values[norm] <= eps * 1.0001).all()
        assert float(values[norm].max()) > 0.9 * eps
    torch.testing.assert_close(
        values["logits"], network(values["image"][:, :1]).detach(), atol=1e-4, rtol=1e-4
    )


def test_a_gray_step_is_that_of_the_levels() -> None:
    network = Pyramid(5, channels=1)
    image = make_images()
    levels = gray_levels(image)
    labels = network(levels).argmax(1)
    expected = step_by_hand(levels, lambda x: F.cross_entropy(network(x), labels, reduction="none"))
    values = run_fgsm(load(network, mean=(0.0,)), image).values
    torch.testing.assert_close(values["image"], expected.expand_as(image), atol=1e-5, rtol=0)


def test_other_gray_attacks_are_gray() -> None:
    model = load(Pyramid(5, channels=1), mean=(0.0,))
    image = make_images()
    for picture in (
        sl.universal(model, image, steps=3).values["change"],
        sl.adversarial_patch(model, image, target=3, steps=3).values["patch"],
        sl.boundary(model, image, steps=5, cells=3).values["random"],
        sl.transfer(model, image, others=(), steps=2).values["image"],
    ):
        assert torch.equal(picture, picture[:, :1].expand_as(picture))


# ── other channels ──


@pytest.mark.parametrize("channels", [2, 5, 13])
def test_images_of_other_channels_are_attacked(channels: int) -> None:
    network = Pyramid(4, channels=channels)
    model = load(network, mean=(0.0,) * channels)
    image = make_images(2, channels)
    labels = network(image).argmax(1)
    expected = step_by_hand(image, lambda x: F.cross_entropy(network(x), labels, reduction="none"))
    result = run_fgsm(model, image)
    torch.testing.assert_close(result.values["image"], expected, atol=1e-5, rtol=0)
    assert result.panels["adversarial"].shape[1] == 3
    within = sl.adversarial(model, image, norm="l2", eps=0.4, steps=5, early=False).values
    assert within["image"].shape == image.shape
    assert (compute_image_norms(within["image"] - image, "l2") <= 0.4001).all()


def test_infinite_scores_are_refused() -> None:
    class Divided(Pyramid):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / 0

    model = load(Divided(3))
    for attack in (sl.adversarial, sl.boundary):
        with pytest.raises(sl.SightlineError, match="Divided gives infinite scores"):
            attack(model, make_images(1))
