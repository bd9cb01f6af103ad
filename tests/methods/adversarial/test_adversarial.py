"""Adversarial examples: the ball, the closed form, success that is true after the PNG."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sightline as sl
from sightline.registry.progress import Step

LABELS = ("ant", "bee", "cat", "dog", "elk")
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, stride=2)
        self.drop, self.norm, self.head = nn.Dropout(0.5), nn.BatchNorm2d(12), nn.Linear(12 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv2(torch.relu(self.conv1(x)))))
        return self.head(self.drop(F.adaptive_avg_pool2d(x, 3).flatten(1)))


def network() -> Net:
    torch.manual_seed(0)
    net = Net().train()
    with torch.no_grad():
        net.head.weight.mul_(4)
        net.norm.running_mean.normal_(0, 0.2)
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
        net.head.bias.sub_(
            net.eval()((pictures(50) - mean) / std).mean(0)
        )  # so that all classes are seen
    return net.train()


@pytest.fixture(scope="module")
def model() -> sl.Model:
    """A network in training mode, with dropout and batch norm: the answers must not depend on that."""
    return sl.load(network(), mean=MEAN, std=STD, labels=LABELS, size=16, device="cpu")


def pictures(count: int = 6) -> Tensor:
    image = torch.rand(count, 3, 14, 18, generator=torch.Generator().manual_seed(1))
    return (image * 1.4 - 0.2).clamp(0, 1)


def by_hand(image: Tensor) -> Tensor:
    """Logits without the library."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    return network().eval()((image - mean) / std)


def change(values: dict[str, Tensor], image: Tensor) -> Tensor:
    return (values["image"].double() - image.double()).flatten(1)


@pytest.mark.parametrize("attack", ["pgd", "fgsm", "mifgsm", "apgd"])
@pytest.mark.parametrize("eps", [1 / 255, 0.05, 0.7, 5.0])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_change_is_at_most_eps(model: sl.Model, norm: str, eps: float, attack: str) -> None:
    image = pictures()
    values = sl.adversarial(
        model, image, attack=attack, norm=norm, eps=eps, steps=5, early=False
    ).values
    size = change(values, image).norm(dim=1, p={"linf": torch.inf, "l2": 2, "l1": 1}[norm])
    assert (size <= eps * (1 + 1e-6) + (1e-5 if norm == "l1" else 6e-8)).all()
    assert (size >= 0.3 * min(eps, 0.2)).all(), "and it uses its room"
    assert 0 <= values["image"].min() <= values["image"].max() <= 1
    assert torch.allclose(values[norm].double(), size, atol=1e-5)
    assert torch.equal(image, pictures())


@pytest.mark.parametrize("eps", [2 / 255, 0.1])
@pytest.mark.parametrize("target", [None, "dog"])
def test_fgsm_is_goodfellows_formula(model: sl.Model, eps: float, target: str | None) -> None:
    x = pictures().requires_grad_()
    logits = by_hand(x)
    label = logits.argmax(1) if target is None else torch.full((6,), 3)
    loss = sum(-logits[i].log_softmax(0)[label[i]] for i in range(6))
    (gradient,) = torch.autograd.grad(loss, x)
    sign = gradient.sign() if target is None else -gradient.sign()
    values = sl.adversarial(model, pictures(), attack="fgsm", eps=eps, target=target).values
    assert torch.allclose(values["image"], (pictures() + eps * sign).clamp(0, 1), atol=1e-6)


def test_fgsm_with_l2_steps_along_the_gradient(model: sl.Model) -> None:
    x = torch.full((2, 3, 14, 18), 0.5) + 0.1 * (pictures(2) - 0.5)
    leaf = x.clone().requires_grad_()
    logits = by_hand(leaf)
    (gradient,) = torch.autograd.grad(-logits.log_softmax(1).amax(1).sum(), leaf)
    values = sl.adversarial(model, x, attack="fgsm", norm="l2", eps=0.2).values
    expected = x + 0.2 * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert torch.allclose(values["image"], expected, atol=1e-6)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.3), ("l2", 8.0)])
def test_with_much_room_it_always_succeeds(model: sl.Model, norm: str, eps: float) -> None:
    values = sl.adversarial(model, pictures(24), norm=norm, eps=eps, steps=20).values
    assert values["success"].float().mean() >= 0.95
    assert torch.equal(
        values["success"], by_hand(values["image"]).argmax(1) != by_hand(pictures(24)).argmax(1)
    )


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.3), ("l2", 8.0)])
def test_it_reaches_the_target(model: sl.Model, norm: str, eps: float) -> None:
    values = sl.adversarial(model, pictures(12), norm=norm, eps=eps, steps=30, target="cat").values
    assert torch.equal(values["success"], by_hand(values["image"]).argmax(1) == 2)
    assert values["success"].float().mean() >= 0.9
    named, numbered = (
        sl.adversarial(model, pictures(3), target=t, steps=3).values["image"] for t in ("Cat", 2)
    )
    assert torch.equal(named, numbered)


def test_the_least_likely_class_is_each_images_own(model: sl.Model) -> None:
    values = sl.adversarial(model, pictures(12), target="least", eps=0.5, steps=30).values
    least = by_hand(pictures(12)).argmin(1)
    assert len(set(least.tolist())) > 1
    assert torch.equal(values["success"], by_hand(values["image"]).argmax(1) == least)
    assert values["success"].float().mean() >= 0.8


def test_more_room_is_never_worse_and_pgd_beats_its_single_step(model: sl.Model) -> None:
    share = [
        float(
            sl.adversarial(model, pictures(24), eps=eps, steps=10).values["success"].float().mean()
        )
        for eps in (1e-6, 0.01, 0.05, 0.3)
    ]
    assert share == sorted(share)
    assert share[0] == 0
    single, many = (
        sl.adversarial(model, pictures(24), attack=attack, eps=0.05, steps=10, early=False).values[
            "logits"
        ]
        for attack in ("fgsm", "pgd")
    )
    label = by_hand(pictures(24)).argmax(1)
    assert F.cross_entropy(many, label) > F.cross_entropy(single, label)


def test_logits_are_those_of_the_image(model: sl.Model) -> None:
    values = sl.adversarial(model, pictures(), eps=0.05, steps=4).values
    assert torch.allclose(values["logits"], model.logits(values["image"]), atol=1e-5)
    assert torch.allclose(values["logits"], by_hand(values["image"]), atol=1e-4)
    assert torch.allclose(values["clean_logits"], by_hand(pictures()), atol=1e-4)


@pytest.mark.parametrize("eps", [0.3 / 255, 1.2 / 255, 4 / 255])
def test_success_in_8_bits_is_what_a_png_keeps(model: sl.Model, eps: float, tmp_path: Path) -> None:
    images = (pictures(16) * 255).round() / 255
    values = sl.adversarial(model, images, eps=eps, steps=10).values
    for i in range(16):
        sl.write(values["image"][i], tmp_path / "adversarial.png")
        sl.write(images[i], tmp_path / "clean.png")
        answer = int(model.logits(sl.read(tmp_path / "adversarial.png")).argmax())
        assert bool(values["success_8bit"][i]) == (
            answer != int(model.logits(sl.read(tmp_path / "clean.png")).argmax())
        )
    if eps < 0.5 / 255:
        assert not values["success_8bit"].any(), "less than half a step of a PNG is rounded away"


@pytest.mark.parametrize("attack", ["pgd", "fmn", "deepfool"])
def test_the_saved_picture_fools_when_it_is_read_back(
    model: sl.Model, attack: str, tmp_path: Path
) -> None:
    images, saved = (pictures(8) * 255).round() / 255, 0
    for i in range(8):
        result = sl.adversarial(model, images[i : i + 1], attack=attack, steps=40)
        result.save(tmp_path)
        read = sl.read(tmp_path / "image.png")
        assert torch.allclose(read, result.values["image_8bit"], atol=1e-6)
        fooled = int(model.logits(read).argmax()) != int(model.logits(images[i : i + 1]).argmax())
        assert fooled == bool(result.values["success_8bit"])
        saved += fooled
    assert saved >= 6, "most changes outlive the rounding"


def test_a_batch_is_its_images(model: sl.Model) -> None:
    """With fgsm for all of them. The random start of pgd belongs to the place in the batch: only the first has the same alone."""
    together = sl.adversarial(model, pictures(), attack="fgsm", eps=0.05).values["image"]
    alone = [
        sl.adversarial(model, image[None], attack="fgsm", eps=0.05).values["image"]
        for image in pictures()
    ]
    assert torch.allclose(together, torch.cat(alone), atol=1e-6)
    together = sl.adversarial(model, pictures(), eps=0.05, steps=2, seed=4).values["image"]
    first = sl.adversarial(model, pictures()[:1], eps=0.05, steps=2, seed=4).values["image"]
    assert torch.allclose(together[:1], first, atol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_seed_decides(model: sl.Model, norm: str) -> None:
    def made(seed: int) -> Tensor:
        return sl.adversarial(model, pictures(), norm=norm, eps=0.05, steps=2, seed=seed).values[
            "image"
        ]

    assert torch.equal(made(1), made(1))
    assert not torch.equal(made(1), made(2))


def test_a_callback_stops_it_and_the_picture_is_kept(model: sl.Model) -> None:
    seen: list[Step] = []

    def stop_at_2(step: Step) -> bool:
        seen.append(step)
        return step.index == 2

    knobs = {"eps": 0.05, "step_size": 0.01}
    values = sl.adversarial(
        model, pictures(), steps=20, callback=stop_at_2, early=False, **knobs
    ).values
    short = sl.adversarial(model, pictures(), steps=2, early=False, **knobs).values
    assert [(s.index, s.total) for s in seen] == [(1, 20), (2, 20)]
    assert torch.equal(values["image"], short["image"])
    assert (change(values, pictures()).abs().amax(1) <= 0.05 + 6e-8).all()


def test_the_default_step_is_madrys(model: sl.Model) -> None:
    explicit = sl.adversarial(
        model, pictures(), eps=0.05, steps=10, step_size=2.5 * 0.05 / 10
    ).values["image"]
    assert torch.equal(
        sl.adversarial(model, pictures(), eps=0.05, steps=10).values["image"], explicit
    )


def test_the_class_it_already_sees_is_refused_as_a_target(model: sl.Model) -> None:
    image = pictures(1)
    top = int(model.logits(image).argmax())
    for target in (top, LABELS[top]):
        with pytest.raises(
            sl.SightlineError, match=f"{LABELS[top]} is what the network already predicts"
        ):
            sl.adversarial(model, image, target=target)


@pytest.mark.parametrize(
    ("knobs", "part"),
    [
        ({"target": "zebra"}, "zebra"),
        ({"target": 5}, "5"),
        ({"target": -1}, "-1"),
        ({"eps": -0.1}, "eps is -0.1"),
        ({"eps": float("nan")}, "eps"),
        ({"steps": 0}, "steps is 0"),
        ({"eps": 0}, "eps is 0; it must lie between 1e-06 and 1000000"),
        ({"norm": "l3"}, "l3"),
        ({"attack": "bim"}, "bim"),
        ({"attack": "cw", "norm": "linf"}, "cw has only l2"),
        ({"attack": "fmn", "eps": 0.1}, "fmn has no radius"),
        ({"attack": "apgd", "step_size": 0.1}, "apgd sets its own step size"),
        ({"peer": "foolbox"}, "foolbox:NAME"),
        ({"peer": "art:PGD"}, "foolbox:NAME"),
        ({"peer": "foolbox:L2FMNAtack"}, "did you mean L2FMNAttack"),
        ({"peer": "torchattacks:PGDL3"}, "did you mean PGDL2"),
        ({"step_size": -1.0}, "step_size is -1"),
    ],
)
def test_other_knobs_are_refused(model: sl.Model, knobs: dict, part: str) -> None:
    with pytest.raises(sl.SightlineError) as caught:
        sl.adversarial(model, pictures(1), **knobs)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


# ── the curve, the lengths, other libraries ──


def test_the_curve_falls_to_nothing(model: sl.Model) -> None:
    result = sl.adversarial(model, pictures(12), eps=0.05, steps=10, curve=4)
    values = result.values
    assert values["curve_eps"].tolist() == pytest.approx(
        [0, 0.0125, 0.05 / 4 ** (1 / 3), 0.05 * 4 ** (1 / 3), 0.2], rel=1e-4
    )
    assert values["curve_accuracy"][0] == 1
    assert values["curve_accuracy"].tolist() == sorted(
        values["curve_accuracy"].tolist(), reverse=True
    )
    assert values["curve_accuracy"][-1] == 0, (
        "an attack that does not get there at a large radius is broken"
    )
    clean = model.logits(pictures(12)).softmax(1).amax(1).mean()
    assert float(values["curve_probability"][0]) == pytest.approx(float(clean), abs=1e-5)
    assert "none is left" in result.captions["curve"]


def test_the_curve_of_a_smallest_change_is_its_lengths(model: sl.Model) -> None:
    result = sl.adversarial(model, pictures(12), attack="fmn", steps=40, curve=5)
    values = result.values
    for radius, share in zip(values["curve_eps"], values["curve_accuracy"], strict=True):
        assert float(share) == pytest.approx(float((values["l2"] > radius).float().mean()))
    assert "lengths" in result.panels


@pytest.mark.parametrize(
    "peer",
    ["foolbox:LinfPGD", "torchattacks:PGD", "torchattacks:AutoAttack", "foolbox:L2FMNAttack"],
)
def test_attacks_of_other_libraries(model: sl.Model, peer: str) -> None:
    state = torch.get_rng_state()
    result = sl.adversarial(
        model, pictures(6), peer=peer, eps=0.1, norm="l2" if "L2" in peer else "linf", steps=5
    )
    assert torch.equal(state, torch.get_rng_state())
    assert result.values["linf"].max() <= 0.1 + 1e-6 or "L2" in peer
    assert torch.equal(
        result.values["success"],
        by_hand(result.values["image"]).argmax(1) != by_hand(pictures(6)).argmax(1),
    )
    if "L2" not in peer:
        assert result.values["success"].float().mean() > 0.6


def test_a_target_for_other_libraries(model: sl.Model) -> None:
    for peer in ("foolbox:LinfPGD", "torchattacks:PGD"):
        values = sl.adversarial(
            model, pictures(6), peer=peer, eps=0.5, target="cat", steps=20
        ).values
        assert (by_hand(values["image"]).argmax(1) == 2).float().mean() >= 0.8


def test_a_gradient_that_is_no_number_leaves_the_last_good_picture() -> None:
    class Breaks(nn.Module):
        """Its gradient is NaN once the first pixel is brighter than 0.55."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([[1.0], [-1.0]]))

        def forward(self, x: Tensor) -> Tensor:
            first = x[:, 0, 0, 0]
            return torch.stack(
                [
                    -x.flatten(1).mean(1)
                    + 1
                    + 0 * ((0.55 - first) * (first < 0.55)).sqrt() * self.weight[0],
                    0 * first,
                ],
                1,
            )

    model = sl.load(Breaks(), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), size=4, device="cpu")
    result = sl.adversarial(model, torch.full((1, 3, 4, 4), 0.5), attack="ifgsm", eps=0.4, steps=10)
    assert result.values["image"].isfinite().all()
    assert 1 < int(result.values["halted"]) <= 3
    assert (
        f"was not a number at step {int(result.values['halted'])}" in result.captions["adversarial"]
    )
