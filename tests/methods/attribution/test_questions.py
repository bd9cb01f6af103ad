"""Attributions of every kind of question: captum and plain autograd agree to 1e-5 of the largest.

The questions are those of several labels, a regression, a box, a pixel, a similarity, a network of
two inputs, and one of five channels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from captum.attr import IntegratedGradients, Occlusion, Saliency
from torch import Tensor, nn
from torch.nn import functional as F

import sightline as sl

SIZE = (24, 36)
WINDOW = 6  # divides both sides
TOLERANCE = 1e-5
ROUNDING = 3e-7  # of a score near 1
SAMPLES = 5

GENERATOR = torch.Generator().manual_seed(11)
IMAGES = torch.rand(2, 3, *SIZE, generator=GENERATOR)
BANDS = torch.rand(2, 5, *SIZE, generator=GENERATOR)
OTHER_IMAGE = torch.rand(1, 3, *SIZE, generator=GENERATOR)


class Features(nn.Module):
    """Two convolutions and tanh, so that no gradient is cut off."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.fine = nn.Conv2d(channels, 6, 3, padding=1)
        self.coarse = nn.Conv2d(6, 7, 3, stride=2, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.coarse(self.fine(image).tanh()).tanh()


class Network(nn.Module):
    """Four numbers from features whose left and right halves count differently."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(12 + channels)
        self.features = Features(channels)
        self.head = nn.Linear(14, 4)
        with torch.no_grad():
            self.head.weight.mul_(8)

    def score(self, image: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.features(image), (1, 2)).flatten(1))

    def forward(self, image: Tensor) -> Any:
        return self.score(image)


class SeveralLabels(Network):
    def forward(self, image: Tensor) -> Tensor:
        # Not so near 0 and 1 that rounding hides the logits.
        return (self.score(image) / 4).sigmoid()


class Embedding(Network):
    def forward(self, image: Tensor) -> Tensor:
        return F.normalize(self.score(image), dim=1)


class Pair(Network):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.score(left) * self.score(right) - self.score(left)


class Dense(Network):
    def __init__(self) -> None:
        super().__init__()
        self.classify = nn.Conv2d(7, 5, 3, padding=1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"out": F.interpolate(self.classify(self.features(image)), SIZE, mode="bilinear")}


class Detector(Network):
    """Two boxes in each image, the second with a score that the label 2 has."""

    num_classes = 4

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        boxes = torch.tensor([[2.0, 3, 20, 20], [18.0, 4, 34, 22]])
        labels = torch.tensor([1, 2])
        probabilities = self.score(images)[:, :2].sigmoid()
        return [{"boxes": boxes, "labels": labels, "scores": row} for row in probabilities]


@dataclass(frozen=True)
class Question:
    """A network, what is asked of it, and the score in plain torch.

    Attributes:
        network: makes it.
        score: from the network and normalized images to N scores.
        asked: the parameters of the method that ask.
        options: arguments of `sl.load`.
        images: in [0, 1].
    """

    network: Callable[[], Network]
    score: Callable[[Any, Tensor], Tensor]
    asked: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    images: Tensor = IMAGES


def read_second_box(network: Detector, normalized: Tensor) -> Tensor:
    return torch.stack([item["scores"][1] for item in network(normalized)])


def normalize_other(channels: int = 3) -> Tensor:
    return (OTHER_IMAGE - make_mean(channels)) / make_std(channels)


def make_mean(channels: int) -> Tensor:
    return torch.linspace(0.3, 0.6, channels).view(1, -1, 1, 1)


def make_std(channels: int) -> Tensor:
    return torch.linspace(0.2, 0.4, channels).view(1, -1, 1, 1)


# The further input is given as the network takes it, which is normalized.
QUESTIONS = {
    "several labels": Question(
        SeveralLabels, lambda net, x: torch.logit(net(x)[:, 2]), {"label": "cat"}
    ),
    "regression": Question(
        Network,
        lambda net, x: net(x)[:, 3],
        {"target": sl.regression(3)},
        {"output_kind": "regression", "labels": ()},
    ),
    "box": Question(Detector, read_second_box, {"target": sl.box(17, 4, 35, 21, "cat")}),
    "pixel": Question(
        Dense,
        lambda net, x: net(x)["out"][:, 1, 7, 29],
        {"target": sl.pixel(7, 29, "bee")},
        {"labels": ("ant", "bee", "cat", "dog", "elk")},
    ),
    "similarity": Question(
        Embedding,
        lambda net, x: F.cosine_similarity(net(x), net(normalize_other())),
        {"target": sl.similar_to(OTHER_IMAGE)},
        {"labels": ()},
    ),
    "two inputs": Question(
        Pair,
        lambda net, x: net(x, normalize_other().expand(len(x), -1, -1, -1))[:, 1],
        {"label": 1},
        {"inputs": {"right": normalize_other()}},
    ),
    "five channels": Question(
        lambda: Network(5), lambda net, x: net(x)[:, 2], {"label": "cat"}, images=BANDS
    ),
}

every_question = pytest.mark.parametrize("name", list(QUESTIONS))


def load(question: Question) -> sl.Model:
    """The model, of a network of its own."""
    channels = question.images.shape[1]
    options = {"labels": ("ant", "bee", "cat", "dog"), **question.options}
    return sl.load(
        question.network().eval(),
        mean=make_mean(channels).flatten().tolist(),
        std=make_std(channels).flatten().tolist(),
        size=SIZE,
        **options,
    )


def make_score_function(question: Question, network: nn.Module) -> Callable[[Tensor], Tensor]:
    """From images in [0, 1] to the scores N."""
    channels = question.images.shape[1]

    def compute_score(image: Tensor) -> Tensor:
        return question.score(network, (image - make_mean(channels)) / make_std(channels))

    return compute_score


def assert_agrees(ours: Tensor, expected: Tensor) -> None:
    expected = expected.detach()
    largest = float(expected.abs().max())
    assert largest > 1e-4
    allowed = max(TOLERANCE * largest, ROUNDING)
    torch.testing.assert_close(ours, expected, rtol=0, atol=allowed)


@every_question
def test_the_gradient(name: str) -> None:
    question = QUESTIONS[name]
    score = make_score_function(question, question.network().eval())
    leaf = question.images.clone().requires_grad_()
    expected = Saliency(score).attribute(leaf, abs=False)
    (by_hand,) = torch.autograd.grad(score(leaf).sum(), leaf)
    values = sl.saliency(load(question), question.images, **question.asked).values
    assert_agrees(values["gradient"], expected)
    assert_agrees(values["gradient"], by_hand)
    assert torch.equal(values["attribution"], values["gradient"].abs().amax(1))


@every_question
def test_integrated_gradients(name: str) -> None:
    question = QUESTIONS[name]
    peer = IntegratedGradients(make_score_function(question, question.network().eval()))
    expected = peer.attribute(
        question.images.clone().requires_grad_(),
        torch.full_like(question.images, 0.5),
        n_steps=SAMPLES,
        method="gausslegendre",
    )
    values = sl.saliency(
        load(question),
        question.images,
        kind="integrated",
        baseline="gray",
        samples=SAMPLES,
        **question.asked,
    ).values
    assert_agrees(values["per_channel"], expected.float())
    assert_agrees(values["attribution"], expected.float().sum(1))


@every_question
@pytest.mark.parametrize("layer", ["features.fine", "features"])
def test_gradcam(name: str, layer: str) -> None:
    question = QUESTIONS[name]
    network = question.network().eval()
    outputs: list[Tensor] = []
    network.get_submodule(layer).register_forward_hook(
        lambda _module, _inputs, output: outputs.append(output)
    )
    score = make_score_function(question, network)(question.images)
    # Of layers that both images of a pair pass, the call for the image that is explained.
    maps = outputs[list_calls_of_image(outputs, question.images)]
    (gradient,) = torch.autograd.grad(score.sum(), maps)
    expected = (gradient.mean((2, 3), keepdim=True) * maps).sum(1).relu()
    values = sl.gradcam(load(question), question.images, layer=layer, **question.asked).values
    assert_agrees(values["cam"], expected)


def list_calls_of_image(outputs: list[Tensor], images: Tensor) -> int:
    """Which call of a layer is the first for all images."""
    return next(number for number, output in enumerate(outputs) if len(output) == len(images))


@every_question
def test_occlusion(name: str) -> None:
    question = QUESTIONS[name]
    shape = (question.images.shape[1], WINDOW, WINDOW)
    expected = Occlusion(make_score_function(question, question.network().eval())).attribute(
        question.images, sliding_window_shapes=shape, strides=shape, baselines=0.5
    )
    values = sl.occlusion(
        load(question), question.images, window=WINDOW, stride=WINDOW, **question.asked
    ).values
    # captum gives every channel the drop of the whole window.
    assert_agrees(values["attribution"], expected[:, 0])
