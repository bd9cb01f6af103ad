"""What autograd's graph tells of an output."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.models.heads.evidence.autograd_graph import (
    has_graph,
    is_made_of_probabilities,
    list_names_between,
)

SCORES = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
WEIGHT = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))


def weigh_by_attention(x: Tensor) -> Tensor:
    shares = x.softmax(1)[:, None]
    return torch.bmm(shares, x.sigmoid()[:, :, None].expand(-1, -1, 3))[:, 0]


@pytest.mark.parametrize(
    "finish",
    [
        lambda x: x.sigmoid(),
        lambda x: x.sigmoid()[:, :2].T.reshape(-1).clone().half(),
        lambda x: x.sigmoid().clamp(1e-4, 1 - 1e-4),
        lambda x: 1 - x.sigmoid(),
        lambda x: (x.sigmoid() + (2 * x).sigmoid()) / 2,
        lambda x: torch.stack([x.sigmoid(), x.flip(1).softmax(1)]).amax(0),
        lambda x: (1 - x.sigmoid()).cumprod(1),
        lambda x: x.softmax(1).cumsum(1),
        lambda x: 1 - F.logsigmoid(-x).exp(),
        F.hardsigmoid,
        weigh_by_attention,
        lambda x: (x.softmax(1) * (2 * x).sigmoid()).sum(1),
        lambda x: x.softmax(1)[:, 1:].sum(1),
    ],
)
def test_probabilities_that_are_combined_stay_probabilities(
    finish: Callable[[Tensor], Tensor],
) -> None:
    assert is_made_of_probabilities(finish(SCORES))


@pytest.mark.parametrize(
    "finish",
    [
        lambda x: x * 2,
        lambda x: x * x.sigmoid(),
        lambda x: x.clamp(0, 1),
        lambda x: x.sigmoid() @ WEIGHT,
        lambda x: torch.bmm(x.sigmoid()[:, None], WEIGHT.expand(2, 4, 4))[:, 0],
        lambda x: x.relu(),
        lambda x: x.detach().sigmoid(),
        lambda x: (x.softmax(1) * torch.linspace(0, 1, 4)).sum(1),  # an expected value
    ],
)
def test_other_numbers_are_no_probabilities(finish: Callable[[Tensor], Tensor]) -> None:
    assert not is_made_of_probabilities(finish(SCORES))


def test_weights_between_features_and_what_is_made_of_them() -> None:
    linear = nn.Linear(4, 3).requires_grad_(False)
    features = linear(SCORES)
    names, has_weights = list_names_between(features.exp().topk(2).values, features)
    assert names == {"ExpBackward0", "TopkBackward0"}
    assert not has_weights
    assert list_names_between(features @ WEIGHT[:3], features)[1]
    assert list_names_between(F.linear(features, WEIGHT[:, :3]), features)[1]
    assert not list_names_between(features @ features.T, features)[1]
    # The layer that makes the features does not lie between.
    assert list_names_between(features + features.relu(), features)[1] is False
    assert list_names_between(linear(SCORES * 2), features) == (set(), False)


def test_only_real_numbers_have_a_graph() -> None:
    assert has_graph(SCORES * 1)
    assert not has_graph(SCORES.detach())
    assert not has_graph(SCORES.argmax(1))
    assert not has_graph("scores")
