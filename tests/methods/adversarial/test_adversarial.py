"""Adversarial examples: the radius, closed forms, and success that is true after the PNG."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sightline as sl
from sightline.registry.progress import Step

LABELS = ("ant", "bee", "cat", "dog", "elk")
MEAN = (0.5, 0.4, 0.3)
STD = (0.25, 0.2, 0.3)


class Net(nn.Module):
    """Two convolutional layers, with dropout and batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 12, 3, stride=2)
        self.drop = nn.Dropout(0.5)
        self.norm = nn.BatchNorm2d(12)
        self.head = nn.Linear(12 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv2(torch.relu(self.conv1(x)))))
        return self.head(self.drop(F.adaptive_avg_pool2d(x, 3).flatten(1)))


def normalize(image: Tensor) -> Tensor:
    mean = torch.tensor(MEAN).view(1, 3, 1, 1)
    std = torch.tensor(STD).view(1, 3, 1, 1)
    return (image - mean) / std


def make_network() -> Net:
    """In training mode; all classes are among its predictions."""
    torch.manual_seed(0)
    net = Net().train()
    with torch.no_grad():
        net.head.weight.mul_(4)
        net.norm.running_mean.normal_(0, 0.2)
        net.head.bias.sub_(net.eval()(normalize(make_images(50))).mean(0))
    return net.train()


@pytest.fixture(scope="module")
def model() -> sl.Model:
    """A network in training mode, on which predictions must not depend."""
    return sl.load(make_network(), mean=MEAN, std=STD, labels=LABELS, size=16, device="cpu")


def make_images(count: int = 6) -> Tensor:
    image = torch.rand(count, 3, 14, 18, generator=torch.Generator().manual_seed(1))
    return (image * 1.4 - 0.2).clamp(0, 1)


def compute_logits(image: Tensor) -> Tensor:
    """Logits without the library."""
    return make_network().eval()(normalize(image))


def compute_change(values: dict[str, Tensor], image: Tensor) -> Tensor:
    return (values["image"].double() - image.double()).flatten(1)


@pytest.mark.parametrize("attack", ["pgd", "fgsm", "mifgsm", "apgd"])
@pytest.mark.parametrize("eps", [1 / 255, 0.05, 0.7, 5.0])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_change_is_at_most_eps(model: sl.Model, norm: str, eps: float, attack: str) -> None:
    image = make_images()
    result = sl.adversarial(model, image, attack=attack, norm=norm, eps=eps, steps=5, early=False)
    values = result.values
    order = {"linf": torch.inf, "l2": 2, "l1": 1}[norm]
    size = compute_change(values, image).norm(dim=1, p=order)
    assert (size <= eps * (1 + 1e-6) + (1e-5 if norm == "l1" else 6e-8)).all()
    assert (size >= 0.3 * min(eps, 0.2)).all(), "and it uses its room"
    assert 0 <= values["image"].min() <= values["image"].max() <= 1
    assert torch.allclose(values[norm].double(), size, atol=1e-5)
    assert torch.equal(image, make_images())


@pytest.mark.parametrize("eps", [2 / 255, 0.1])
@pytest.mark.parametrize("target", [None, "dog"])
def test_fgsm_is_goodfellows_formula(model: sl.Model, eps: float, target: str | None) -> None:
    x = make_images().requires_grad_()
    logits = compute_logits(x)
    labels = logits.argmax(1) if target is None else torch.full((6,), 3)
    loss = sum(-logits[i].log_softmax(0)[labels[i]] for i in range(6))
    (gradient,) = torch.autograd.grad(loss, x)
    sign = gradient.sign() if target is None else -gradient.sign()
    values = sl.adversarial(model, make_images(), attack="fgsm", eps=eps, target=target).values
    assert torch.allclose(values["image"], (make_images() + eps * sign).clamp(0, 1), atol=1e-6)


def test_fgsm_with_l2_steps_along_the_gradient(model: sl.Model) -> None:
    x = torch.full((2, 3, 14, 18), 0.5) + 0.1 * (make_images(2) - 0.5)
    leaf = x.clone().requires_grad_()
    logits = compute_logits(leaf)
    (gradient,) = torch.autograd.grad(-logits.log_softmax(1).amax(1).sum(), leaf)
    values = sl.adversarial(model, x, attack="fgsm", norm="l2", eps=0.2).values
    expected = x + 0.2 * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert torch.allclose(values["image"], expected, atol=1e-6)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.3), ("l2", 8.0)])
def test_with_a_large_radius_it_always_succeeds(model: sl.Model, norm: str, eps: float) -> None:
    images = make_images(24)
    values = sl.adversarial(model, images, norm=norm, eps=eps, steps=20).values
    assert values["success"].float().mean() >= 0.95
    is_fooled = compute_logits(values["image"]).argmax(1) != compute_logits(images).argmax(1)
    assert torch.equal(values["success"], is_fooled)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.3), ("l2", 8.0)])
def test_it_reaches_the_target(model: sl.Model, norm: str, eps: float) -> None:
    result = sl.adversarial(model, make_images(12), norm=norm, eps=eps, steps=30, target="cat")
    values = result.values
    assert torch.equal(values["success"], compute_logits(values["image"]).argmax(1) == 2)
    assert values["success"].float().mean() >= 0.9
    by_name = sl.adversarial(model, make_images(3), target="Cat", steps=3).values["image"]
    by_index = sl.adversarial(model, make_images(3), target=2, steps=3).values["image"]
    assert torch.equal(by_name, by_index)


def test_the_least_likely_class_is_each_images_own(model: sl.Model) -> None:
    values = sl.adversarial(model, make_images(12), target="least", eps=0.5, steps=30).values
    least = compute_logits(make_images(12)).argmin(1)
    assert len(set(least.tolist())) > 1
    assert torch.equal(values["success"], compute_logits(values["image"]).argmax(1) == least)
    assert values["success"].float().mean() >= 0.8


def test_a_larger_radius_is_never_worse_and_pgd_beats_its_single_step(model: sl.Model) -> None:
    images = make_images(24)
    shares: list[float] = []
    for eps in (1e-6, 0.01, 0.05, 0.3):
        values = sl.adversarial(model, images, eps=eps, steps=10).values
        shares.append(float(values["success"].float().mean()))
    assert shares == sorted(shares)
    assert shares[0] == 0
    labels = compute_logits(images).argmax(1)
    losses: list[float] = []
    for attack in ("fgsm", "pgd"):
        result = sl.adversarial(model, images, attack=attack, eps=0.05, steps=10, early=False)
        losses.append(float(F.cross_entropy(result.values["logits"], labels)))
    assert losses[1] > losses[0]


def test_logits_are_those_of_the_image(model: sl.Model) -> None:
    values = sl.adversarial(model, make_images(), eps=0.05, steps=4).values
    assert torch.allclose(values["logits"], model.logits(values["image"]), atol=1e-5)
    assert torch.allclose(values["logits"], compute_logits(values["image"]), atol=1e-4)
    assert torch.allclose(values["clean_logits"], compute_logits(make_images()), atol=1e-4)


@pytest.mark.parametrize("eps", [0.3 / 255, 1.2 / 255, 4 / 255])
def test_success_in_8_bits_is_what_a_png_keeps(model: sl.Model, eps: float, tmp_path: Path) -> None:
    images = (make_images(16) * 255).round() / 255
    values = sl.adversarial(model, images, eps=eps, steps=10).values
    for i in range(16):
        sl.write(values["image"][i], tmp_path / "adversarial.png")
        sl.write(images[i], tmp_path / "clean.png")
        predicted = int(model.logits(sl.read(tmp_path / "adversarial.png")).argmax())
        clean_class = int(model.logits(sl.read(tmp_path / "clean.png")).argmax())
        assert bool(values["success_8bit"][i]) == (predicted != clean_class)
    if eps < 0.5 / 255:
        assert not values["success_8bit"].any(), "less than half a step of a PNG is rounded away"


@pytest.mark.parametrize("attack", ["pgd", "fmn", "deepfool"])
def test_the_saved_picture_fools_when_it_is_read_back(
    model: sl.Model, attack: str, tmp_path: Path
) -> None:
    images = (make_images(8) * 255).round() / 255
    fooled_count = 0
    for i in range(8):
        image = images[i : i + 1]
        result = sl.adversarial(model, image, attack=attack, steps=40)
        result.save(tmp_path)
        saved = sl.read(tmp_path / "image.png")
        assert torch.allclose(saved, result.values["image_8bit"], atol=1e-6)
        is_fooled = int(model.logits(saved).argmax()) != int(model.logits(image).argmax())
        assert is_fooled == bool(result.values["success_8bit"])
        fooled_count += is_fooled
    assert fooled_count >= 6, "most changes survive the rounding"


def test_a_batch_is_its_images(model: sl.Model) -> None:
    """All of them with fgsm.

    The random start of pgd depends on the row in the batch: only the first has the same alone.
    """
    images = make_images()
    together = sl.adversarial(model, images, attack="fgsm", eps=0.05).values["image"]
    alone = [
        sl.adversarial(model, image[None], attack="fgsm", eps=0.05).values["image"]
        for image in images
    ]
    assert torch.allclose(together, torch.cat(alone), atol=1e-6)
    together = sl.adversarial(model, images, eps=0.05, steps=2, seed=4).values["image"]
    first = sl.adversarial(model, images[:1], eps=0.05, steps=2, seed=4).values["image"]
    assert torch.allclose(together[:1], first, atol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_seed_decides(model: sl.Model, norm: str) -> None:
    results = [
        sl.adversarial(model, make_images(), norm=norm, eps=0.05, steps=2, seed=seed)
        for seed in (1, 1, 2)
    ]
    images = [result.values["image"] for result in results]
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_a_callback_stops_it_and_the_picture_is_kept(model: sl.Model) -> None:
    steps: list[Step] = []

    def stop_at_2(step: Step) -> bool:
        steps.append(step)
        return step.index == 2

    options = {"eps": 0.05, "step_size": 0.01, "early": False}
    images = make_images()
    values = sl.adversarial(model, images, steps=20, callback=stop_at_2, **options).values
    short = sl.adversarial(model, images, steps=2, **options).values
    assert [(step.index, step.total) for step in steps] == [(1, 20), (2, 20)]
    assert torch.equal(values["image"], short["image"])
    assert (compute_change(values, images).abs().amax(1) <= 0.05 + 6e-8).all()


def test_the_default_step_is_madrys(model: sl.Model) -> None:
    step_size = 2.5 * 0.05 / 10
    explicit = sl.adversarial(model, make_images(), eps=0.05, steps=10, step_size=step_size)
    default = sl.adversarial(model, make_images(), eps=0.05, steps=10)
    assert torch.equal(default.values["image"], explicit.values["image"])


def test_the_class_it_already_predicts_is_refused_as_a_target(model: sl.Model) -> None:
    image = make_images(1)
    top = int(model.logits(image).argmax())
    for target in (top, LABELS[top]):
        with pytest.raises(
            sl.SightlineError, match=f"{LABELS[top]} is what the network already predicts"
        ):
            sl.adversarial(model, image, target=target)


@pytest.mark.parametrize(
    ("options", "words"),
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
def test_wrong_parameters_are_refused_in_one_line(
    model: sl.Model, options: dict, words: str
) -> None:
    with pytest.raises(sl.SightlineError) as caught:
        sl.adversarial(model, make_images(1), **options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


# ── the curve, the lengths, other libraries ──


def test_the_curve_falls_to_nothing(model: sl.Model) -> None:
    result = sl.adversarial(model, make_images(12), eps=0.05, steps=10, curve=4)
    values = result.values
    radii = [0, 0.0125, 0.05 / 4 ** (1 / 3), 0.05 * 4 ** (1 / 3), 0.2]
    assert values["curve_eps"].tolist() == pytest.approx(radii, rel=1e-4)
    accuracy = values["curve_accuracy"].tolist()
    assert accuracy[0] == 1
    assert accuracy == sorted(accuracy, reverse=True)
    assert accuracy[-1] == 0, "an attack that does not get there at a large radius is broken"
    clean = model.logits(make_images(12)).softmax(1).amax(1).mean()
    assert float(values["curve_probability"][0]) == pytest.approx(float(clean), abs=1e-5)
    assert "none is left" in result.captions["curve"]


def test_the_curve_of_a_smallest_change_is_its_lengths(model: sl.Model) -> None:
    result = sl.adversarial(model, make_images(12), attack="fmn", steps=40, curve=5)
    values = result.values
    for radius, share in zip(values["curve_eps"], values["curve_accuracy"], strict=True):
        assert float(share) == pytest.approx(float((values["l2"] > radius).float().mean()))
    assert "lengths" in result.panels


@pytest.mark.parametrize(
    "peer",
    ["foolbox:LinfPGD", "torchattacks:PGD", "torchattacks:AutoAttack", "foolbox:L2FMNAttack"],
)
def test_attacks_of_other_libraries(model: sl.Model, peer: str) -> None:
    is_l2 = "L2" in peer
    norm = "l2" if is_l2 else "linf"
    images = make_images(6)
    state = torch.get_rng_state()
    values = sl.adversarial(model, images, peer=peer, eps=0.1, norm=norm, steps=5).values
    assert torch.equal(state, torch.get_rng_state())
    assert is_l2 or values["linf"].max() <= 0.1 + 1e-6
    is_fooled = compute_logits(values["image"]).argmax(1) != compute_logits(images).argmax(1)
    assert torch.equal(values["success"], is_fooled)
    assert is_l2 or values["success"].float().mean() > 0.6


def test_a_target_for_other_libraries(model: sl.Model) -> None:
    options = {"eps": 0.5, "target": "cat", "steps": 20}
    for peer in ("foolbox:LinfPGD", "torchattacks:PGD"):
        values = sl.adversarial(model, make_images(6), peer=peer, **options).values
        assert (compute_logits(values["image"]).argmax(1) == 2).float().mean() >= 0.8


class BreaksWhereBright(nn.Module):
    """Two classes; the gradient is NaN where the first pixel value is above 0.55."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0]))

    def forward(self, x: Tensor) -> Tensor:
        first = x[:, 0, 0, 0]
        root = ((0.55 - first) * (first < 0.55)).sqrt()
        score = 1 - x.flatten(1).mean(1) + 0 * root * self.weight
        return torch.stack([score, 0 * first], 1)


def test_a_gradient_that_is_no_number_leaves_the_last_good_picture() -> None:
    model = sl.load(BreaksWhereBright(), mean=(0.0,) * 3, std=(1.0,) * 3, size=4, device="cpu")
    image = torch.full((1, 3, 4, 5), 0.5)
    result = sl.adversarial(model, image, attack="ifgsm", eps=0.4, steps=10)
    assert result.values["image"].isfinite().all()
    halted = int(result.values["halted"])
    assert 1 < halted <= 3
    assert f"was not a number at step {halted}" in result.captions["adversarial"]
