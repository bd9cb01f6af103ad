"""What an output means that autograd did not follow: the operation that made it is found."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sightline as sl
from sightline.models.network.origin import OriginTrace

IMAGES = torch.rand(3, 3, 12, 16, generator=torch.Generator().manual_seed(1))


class Cut(nn.Module):
    """A network whose answer has no gradient."""

    def __init__(self, finish: Callable[[Tensor], Any], classes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.finish = finish
        self.body = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(5, classes)

    def score(self, images: Tensor) -> Tensor:
        """The scores before the end."""
        return 3 * self.head(self.body((images - 0.5) / 0.5).flatten(1))

    def forward(self, images: Tensor) -> Any:
        with torch.no_grad():
            return self.finish(3 * self.head(self.body(images).flatten(1)))


def load(network: Cut, **options: Any) -> sl.Model:
    return sl.load(network, mean=[0.5] * 3, std=[0.5] * 3, size=(12, 16), **options)


def finish_double(scores: Tensor) -> Tensor:
    """Converted, turned, copied and named."""
    return scores.double().sigmoid().t().contiguous().t().float()


def finish_in_place(scores: Tensor) -> dict[str, Tensor]:
    """Written to the scores themselves."""
    return {"probs": scores.sigmoid_(), "features": scores.new_zeros(len(scores), 2)}


@pytest.mark.parametrize("finish", [torch.sigmoid, finish_double, finish_in_place])
def test_several_labels_after_a_sigmoid(finish: Callable[[Tensor], Any]) -> None:
    network = Cut(finish, classes=4)
    for options in ({}, {"multilabel": True}):
        model = load(network, **options)
        assert model.output_kind == "multilabel"
        expected = network.score(IMAGES).detach()
        torch.testing.assert_close(model.logits(IMAGES), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.probabilities(IMAGES), expected.sigmoid())


@pytest.mark.parametrize(
    "finish",
    [
        lambda scores: scores.sigmoid().clamp(1e-6, 1 - 1e-6),
        lambda scores: 1 - scores.sigmoid(),
        lambda scores: torch.stack([scores.sigmoid(), (2 * scores).sigmoid()]).mean(0),
        lambda scores: torch.cat([scores.sigmoid(), scores.neg().sigmoid()[:, :1]], 1),
        lambda scores: scores.softmax(1)[:, 1:],
    ],
    ids=["limited", "from 1", "mean", "joined", "share"],
)
def test_combined_probabilities(finish: Callable[[Tensor], Tensor]) -> None:
    model = load(Cut(finish, classes=4))
    assert model.output_kind == "multilabel"
    expected = finish(model.network.score(IMAGES).detach())  # type: ignore[operator]
    torch.testing.assert_close(model.probabilities(IMAGES), expected)


def test_one_probability() -> None:
    network = Cut(torch.sigmoid, classes=1)
    model = load(network)
    assert model.output_kind == "binary"
    expected = network.score(IMAGES).detach().sigmoid()[:, 0]
    torch.testing.assert_close(model.probabilities(IMAGES)[:, 1], expected)
    detached = load(Cut(lambda scores: scores.sigmoid().detach()[:, 0], classes=1))
    torch.testing.assert_close(detached.probabilities(IMAGES)[:, 1], expected)


@pytest.mark.parametrize(
    "finish",
    [
        lambda scores: scores.sigmoid() * 0.5 + 0.1,
        lambda scores: scores.clamp(0, 1),
        lambda scores: scores.abs() / 10,
    ],
)
def test_other_numbers_between_0_and_1_are_no_probabilities(
    finish: Callable[[Tensor], Tensor],
) -> None:
    network = Cut(finish, classes=4)
    model = load(network)
    assert model.output_kind == "logits"
    torch.testing.assert_close(model.logits(IMAGES), finish(network.score(IMAGES)).detach())


def test_the_trace_names_the_last_operation() -> None:
    values = torch.linspace(-1, 1, 6).view(2, 3)
    with OriginTrace() as trace:
        halves = values.sigmoid().half().unbind()
        doubled = halves[0] * 2
        joined = torch.empty(3)
        joined.copy_(halves[1])
    assert trace.find_operation(halves[1]) == "sigmoid"
    assert trace.find_operation(doubled) == "mul"
    assert trace.find_operation(joined) == "sigmoid"
    assert trace.find_operation(values) == ""
