"""What an output means that autograd did not follow: the operation that made it is found."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sightline as sl
from sightline.models.network.origin import OriginTrace

IMAGES = torch.rand(3, 3, 12, 16, generator=torch.Generator().manual_seed(1))


class Cut(nn.Module):
    """A network whose answer has no gradient, or is computed in another `way`."""

    def __init__(
        self, finish: Callable[[Tensor], Any], classes: int, way: Callable[[], Any] = torch.no_grad
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.way = way
        self.finish = finish
        self.body = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(5, classes)

    def score(self, images: Tensor) -> Tensor:
        """The scores before the end."""
        return 3 * self.head(self.body((images - 0.5) / 0.5).flatten(1))

    def forward(self, images: Tensor) -> Any:
        with self.way():
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


def write_pieces(first: Tensor, second: Tensor) -> Tensor:
    pieces = torch.zeros_like(first)
    pieces[:, :2] = first[:, :2]
    pieces[:, 2:] = second[:, 2:]
    return pieces


def add_pieces(probabilities: Tensor) -> Tensor:
    """As tiles that overlap are put together."""
    total, counts = torch.zeros_like(probabilities), torch.zeros(4)
    for start in (0, 1):
        total[:, start : start + 3] += probabilities[:, start : start + 3]
        counts[start : start + 3] += 1
    return total / counts


def take_out(probabilities: Tensor) -> Tensor:
    probabilities = probabilities.clone()
    probabilities[:, 0] = 0
    return probabilities


def squash_part(numbers: Tensor) -> Tensor:
    numbers = numbers.clone()
    numbers[:, 0].sigmoid_()
    return numbers


def look_at(probabilities: Tensor) -> Tensor:
    """Makes a view by an operation that means nothing here, and leaves it."""
    torch.view_as_complex(probabilities.unflatten(1, (2, 2)))
    return probabilities


def make_table(scores: Tensor) -> Tensor:
    return torch.stack([scores, 2 * scores, scores.flip(1), scores - 1], 1)


WAYS: dict[str, Callable[[], Any]] = {
    "cut": torch.no_grad,
    "inference": torch.inference_mode,
    "with gradient": nullcontext,
}

GATE = torch.linspace(0.2, 1.0, 4)

# Probabilities of several labels, for scores N×4.
COMBINED: dict[str, Callable[[Tensor], Tensor]] = {
    "limited": lambda scores: scores.sigmoid().clamp(1e-6, 1 - 1e-6),
    "from 1": lambda scores: 1 - scores.sigmoid(),
    "mean": lambda scores: torch.stack([scores.sigmoid(), (2 * scores).sigmoid()]).mean(0),
    "joined": lambda scores: torch.cat([scores.sigmoid(), scores.neg().sigmoid()[:, :1]], 1),
    "share": lambda scores: scores.softmax(1)[:, 1:],
    "sum": lambda scores: (scores.sigmoid() + (scores - 1).sigmoid()) / 2,
    "product": lambda scores: scores.sigmoid() * scores.flip(1).softmax(1),
    "either": lambda scores: torch.maximum(scores.sigmoid(), (scores / 3).sigmoid()),
    "chosen": lambda scores: torch.where(scores > 0.1, scores.sigmoid(), (scores / 2).sigmoid()),
    "zeroed": lambda scores: torch.where(scores > 2, torch.zeros_like(scores), scores.sigmoid()),
    "power": lambda scores: scores.sigmoid().pow(1.5),
    "smoothed": lambda scores: scores.sigmoid() * 0.9 + 0.05,
    "by a gate": lambda scores: scores.sigmoid() * GATE,
    "mixture": lambda scores: torch.lerp(scores.sigmoid(), scores.softmax(1), 0.25),
    "by logarithm": lambda scores: scores.log_softmax(1).exp()[:, :3],
    "written in place": lambda scores: scores.sigmoid().mul_(0.5).add_(0.25),
    "limited again": lambda scores: scores.sigmoid().clip(0.01, 0.99),
    "in pieces": lambda scores: torch.cat(scores.sigmoid().split([1, 3], 1)[::-1], 1),
    "in chunks": lambda scores: torch.hstack(scores.sigmoid().chunk(2, 1)[::-1]),
    "flattened": lambda scores: scores.sigmoid().unflatten(1, (2, 2)).movedim(1, 2).flatten(1),
    "padded": lambda scores: nn.functional.pad(scores.sigmoid(), (0, 1)),
    "rolled": lambda scores: scores.sigmoid().roll(1, 1),
    "pieces written": lambda scores: write_pieces(scores.sigmoid(), (2 * scores).sigmoid()),
    "pieces added": lambda scores: add_pieces(scores.sigmoid()),
    "one taken out": lambda scores: take_out(scores.sigmoid()),
    "attended": lambda scores: (scores.softmax(1)[:, None] @ make_table(scores).sigmoid())[:, 0],
    "looked at": lambda scores: look_at(scores.sigmoid()),
    "noisy or": lambda scores: 1 - (1 - scores.sigmoid()) * (1 - (scores - 1).sigmoid()),
}

# Numbers between 0 and 1 that are none.
NO_PROBABILITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "limited": lambda scores: scores.clamp(0, 1),
    "size": lambda scores: scores.abs() / 10,
    "gated": lambda scores: (scores.abs() / 10) * scores.sigmoid(),
    "joined": lambda scores: torch.cat([scores.sigmoid(), scores.abs() / 10], 1),
    "part": lambda scores: write_pieces(scores.sigmoid(), scores.abs() / 10),
    "other part": lambda scores: write_pieces(scores.abs() / 10, scores.sigmoid()),
    "part in place": lambda scores: squash_part(scores.abs() / 10),
    "weighed": lambda scores: scores.sigmoid() @ torch.eye(4).roll(1, 0) / 2,
    "expected": lambda scores: torch.stack(
        [(scores.softmax(1) * GATE).sum(1), (scores.softmax(1) * GATE.flip(0)).sum(1)], 1
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", COMBINED)
def test_combined_probabilities(name: str, way: str) -> None:
    finish = COMBINED[name]
    model = load(Cut(finish, classes=4, way=WAYS[way]))
    assert model.output_kind == "multilabel"
    expected = finish(model.network.score(IMAGES).detach())  # type: ignore[operator]
    torch.testing.assert_close(model.probabilities(IMAGES), expected)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NO_PROBABILITIES)
def test_other_numbers_between_0_and_1_are_no_probabilities(name: str, way: str) -> None:
    finish = NO_PROBABILITIES[name]
    network = Cut(finish, classes=4, way=WAYS[way])
    model = load(network)
    assert model.output_kind == "logits"
    torch.testing.assert_close(model.logits(IMAGES), finish(network.score(IMAGES)).detach())


def test_one_probability() -> None:
    network = Cut(torch.sigmoid, classes=1)
    model = load(network)
    assert model.output_kind == "binary"
    expected = network.score(IMAGES).detach().sigmoid()[:, 0]
    torch.testing.assert_close(model.probabilities(IMAGES)[:, 1], expected)
    detached = load(Cut(lambda scores: scores.sigmoid().detach()[:, 0], classes=1))
    torch.testing.assert_close(detached.probabilities(IMAGES)[:, 1], expected)


def test_the_trace_names_the_last_operation() -> None:
    values = torch.linspace(-1, 1, 6).view(2, 3)
    with OriginTrace(values) as trace:
        halves = values.sigmoid().half().unbind()
        doubled = halves[0] * 2
        constant = torch.ones(3) * 3
        weighed = halves[0].float() @ torch.ones(3, 2)
        joined = torch.empty(3)
        joined.copy_(halves[1])
    assert trace.find_operation(halves[1]) == "sigmoid"
    assert trace.find_operation(doubled) == "sigmoid"
    assert trace.find_operation(constant) == ""
    assert trace.find_operation(weighed) not in ("", "sigmoid")
    assert trace.find_operation(joined) == "sigmoid"
    assert trace.find_operation(values) == "image"


def test_what_does_not_run_while_watched() -> None:
    """Nothing is known of what made it, and the network is not at fault."""

    def choose(scores: Tensor) -> Tensor:
        return torch.cond(scores.sum() > 0, torch.abs, torch.neg, (scores,)).clamp(0, 1)

    network = Cut(choose, classes=4)
    model = load(network)
    assert model.output_kind == "logits"
    torch.testing.assert_close(model.logits(IMAGES), choose(network.score(IMAGES).detach()))
