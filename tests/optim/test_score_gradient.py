"""Gradients in any precision; and what is cut off from the image is told from what is silent."""

from collections.abc import Callable

import pytest
import torch
from helpers import make_input
from torch import Tensor, nn

import sightline as sl
from sightline.optim.score_gradient import (
    compute_loss_gradient,
    require_feature_gradient,
    require_image_gradient,
    run_layers,
)

SIZE = (20, 28)


class Branches(nn.Module):
    """A GELU network with something done to its features in the middle."""

    def __init__(self, middle: Callable[[Tensor], Tensor] = torch.clone) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Conv2d(3, 6, 3, stride=2)
        self.mix = nn.Conv2d(6, 5, 3)
        self.head = nn.Linear(5, 3)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        features = self.middle(nn.functional.gelu(self.stem(x)))
        return self.head(self.mix(features).square().mean((2, 3)))


def load(network: nn.Module) -> sl.Model:
    return sl.load(network.eval(), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), size=SIZE)


def make_images(count: int = 2) -> Tensor:
    return make_input(count, 3, *SIZE).sigmoid()


def test_the_gradient_is_that_of_plain_autograd() -> None:
    network = Branches()
    model = load(network)
    objective = sl.logit(2) - 0.3 * sl.tv()
    images = make_images()
    scores, gradient = compute_loss_gradient(model, objective.bind(model), ["logits"], images)

    leaf = images.clone().requires_grad_()
    mean = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)
    std = torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    squares = leaf.diff(dim=3).square().sum((1, 2, 3)) + leaf.diff(dim=2).square().sum((1, 2, 3))
    expected = network((leaf - mean) / std)[:, 2] - 0.3 * squares / (SIZE[0] * SIZE[1])
    expected.sum().backward()
    torch.testing.assert_close(scores, expected.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient, -leaf.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("weight", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["half", "bfloat16"])
def test_half_precision_neither_overflows_nor_vanishes(dtype: torch.dtype, weight: float) -> None:
    images = make_images()
    objective = weight * sl.channel("mix", 3)
    gradients: list[Tensor] = []
    for network in (Branches(), Branches().to(dtype)):
        model = load(network)
        _, gradient = compute_loss_gradient(model, objective.bind(model), ["mix"], images)
        gradients.append(gradient / weight)
    exact, rough = gradients
    assert rough.dtype == torch.float32
    for image in range(2):
        cosine = torch.cosine_similarity(exact[image].flatten(), rough[image].flatten(), 0)
        assert cosine > 0.99
    torch.testing.assert_close(rough, exact, atol=0.05 * float(exact.abs().max()), rtol=0)


def test_features_are_compared_in_single_precision() -> None:
    """A sum of squares of 300 would overflow in half precision."""
    network = Branches()
    with torch.no_grad():
        network.stem.bias.fill_(300.0)
    features = run_layers(load(network.half()), make_images(), ["stem"])["stem"]
    assert features.dtype == torch.float32
    assert features.square().sum().isfinite()


CUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "detach": lambda x: x.detach(),
    "numpy": lambda x: torch.from_numpy(x.detach().numpy()),
    "round": lambda x: (x * 16).round() / 16,
    "zero gradient": lambda x: x.detach() + 0 * x,
    "sign": lambda x: x.sign(),
}


@pytest.mark.parametrize("name", CUTS)
def test_a_cut_network_is_refused(name: str) -> None:
    model = load(Branches(CUTS[name]))
    images = make_images()

    def compute_logits(image: Tensor) -> Tensor:
        return model.run(image, ["logits"])["logits"]

    with pytest.raises(sl.SightlineError, match="cut off from differentiation"):
        require_image_gradient(model, compute_logits, images)
    with pytest.raises(sl.SightlineError, match="cut off from differentiation"):
        require_feature_gradient(model, ["stem", "mix"], images)
    require_feature_gradient(model, ["stem"], images)


@pytest.mark.parametrize(
    "activation", [nn.ReLU(), nn.Hardtanh(0, 1), nn.ReLU6()], ids=["relu", "hardtanh", "relu6"]
)
def test_a_silent_unit_is_no_cut(activation: nn.Module) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), activation)
    with torch.no_grad():
        network[0].bias.fill_(-50.0)
    model = load(network)
    require_feature_gradient(model, ["1"], make_images())


def test_scores_that_cancel_are_no_cut() -> None:
    """One logit for yes or no gives the columns −z and z, whose sum has no gradient."""
    model = load(nn.Sequential(Branches(), nn.Linear(3, 1)))
    assert model.output_kind == "binary"

    def compute_logits(image: Tensor) -> Tensor:
        return model.run(image, ["logits"])["logits"]

    require_image_gradient(model, compute_logits, make_images(1))
