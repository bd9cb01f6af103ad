"""Which value of a tuple holds the scores."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from sightline.models.heads.evidence.tuple_entries import choose_tuple_entry, count_rival_entries
from sightline.models.heads.selection import list_plain_entries
from sightline.models.model import Model

torch.manual_seed(2)
FEATURES = nn.Linear(6, 8)
HEAD = nn.Linear(8, 4)
REFINE = nn.Linear(4, 4)
IMAGE = torch.rand(2, 6)


def make_scores() -> Tensor:
    return HEAD(FEATURES(IMAGE))


class Named(NamedTuple):
    """A tuple with names."""

    first: Tensor
    second: Tensor


@pytest.mark.parametrize(
    "tell",
    [
        lambda y: y.topk(2, 1).values,
        lambda y: y.softmax(1).sort(1).values[:, :3],
        lambda y: y[:, :, None] - y[:, None],
        lambda y: y.square().mean(),
        lambda y: y.logsumexp(1),
        lambda y: None,
        lambda y: "a cat",
    ],
)
def test_what_is_told_of_scores_is_not_taken_for_them(tell: Callable[[Tensor], Any]) -> None:
    scores = make_scores()
    assert choose_tuple_entry((scores, tell(scores))) == 0
    assert count_rival_entries([scores, tell(scores)]) == 0


def test_a_loss_before_the_scores_is_no_features() -> None:
    scores = make_scores()
    assert choose_tuple_entry((scores.logsumexp(1).mean(), scores)) == 0
    network = Network(lambda x: (x.mean((2, 3)).logsumexp(1).mean(), x.mean((2, 3))))
    with pytest.raises(ValueError, match="a single number for the whole batch, as a loss is"):
        Model(network, size=20).logits(torch.rand(1, 3, 20, 20))
    assert Model(network, size=20, output=1).output_kind == "logits"


@pytest.mark.parametrize(
    "finish", [HEAD, lambda x: HEAD(x).relu(), lambda x: torch.cdist(x, HEAD.weight)]
)
def test_scores_that_weights_make_of_features(finish: Callable[[Tensor], Tensor]) -> None:
    features = FEATURES(IMAGE)
    assert choose_tuple_entry((features, finish(features))) == 1
    assert choose_tuple_entry([features, torch.arange(2), finish(features)]) == 2
    assert list_plain_entries(Named(features, finish(features))) == ()


def test_maps_before_their_mean() -> None:
    maps = nn.Conv2d(3, 4, 3)(torch.rand(2, 3, 8, 9))
    assert choose_tuple_entry((maps, maps.mean((2, 3)))) == 1


def test_rivals_are_alike_and_not_made_of_the_first_without_weights() -> None:
    scores = make_scores()
    assert count_rival_entries((scores, scores.softmax(1))) == 0
    assert count_rival_entries((scores, make_scores())) == 1
    refined = scores + REFINE(scores)
    assert count_rival_entries([scores, refined, refined + REFINE(refined)]) == 2
    maps = nn.Conv2d(3, 4, 3)(torch.rand(2, 3, 8, 9))
    small = nn.Conv2d(3, 4, 5)(torch.rand(2, 3, 8, 9))
    assert count_rival_entries([maps, small, small[:, :2]]) == 1
    assert count_rival_entries(list_plain_entries([{"boxes": maps, "scores": maps}])) == 0


class Network(nn.Module):
    """A convolution, whose features a function turns into the output."""

    def __init__(self, finish: Callable[[Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.convolution = nn.Conv2d(3, 4, 3, stride=4)
        self.head = nn.Linear(4, 6)
        self.finish = finish
        self.eval()

    def forward(self, image: Tensor) -> Any:
        return self.finish(self.convolution(image))


def test_a_tuple_inside_of_a_dict_is_judged_too() -> None:
    network = Network(lambda x: x)
    network.finish = lambda x: {"outputs": (y := x.mean((2, 3)), network.head(y))}
    model = Model(network, size=20)
    images = torch.rand(2, 3, 20, 20)
    expected = network(model.normalize(images))["outputs"][1]
    torch.testing.assert_close(model.logits(images), expected)
    assert model.findings.notes == ("the scores are value outputs.1 of what it returns",)
    network.finish = lambda x: {"outputs": [x.mean((2, 3)), x.amax((2, 3))], "features": x}
    model = Model(network, size=20)
    assert model.findings.notes == (
        "the scores are value outputs.0 of 2 alike: output= picks another",
    )
    network.finish = lambda x: ((x.mean((2, 3)), x.amax((2, 3))), x)
    model = Model(network, size=20)
    assert model.findings.notes == ("the scores are value 0.0 of 2 alike: output= picks another",)
