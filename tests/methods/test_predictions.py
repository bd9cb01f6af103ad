"""The softmax by hand, on a network whose logits are known."""

import math

import pytest
import torch
from torch import Tensor, nn

import sightline as sl

LABELS = ("red", "green", "blue", "all three", "none", "half")


class Means(nn.Module):
    """Scores that are the mean normalized colours and simple sums of them."""

    def forward(self, x: Tensor) -> Tensor:
        r, g, b = x.mean((2, 3)).unbind(1)
        return torch.stack([r, g, b, r + g + b, -r - g - b, (r + g + b) / 2], 1)


@pytest.fixture(scope="module")
def model() -> sl.Model:
    return sl.load(
        Means(), mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.25), labels=LABELS, size=8, device="cpu"
    )


def by_hand(image: Tensor) -> list[float]:
    r, g, b = (
        (float(image[c].double().mean()) - m) / s
        for c, (m, s) in enumerate(((0.5, 0.1), (0.4, 0.2), (0.3, 0.25)))
    )
    return [r, g, b, r + g + b, -r - g - b, (r + g + b) / 2]


def test_probabilities_are_the_softmax_of_the_scores(model: sl.Model) -> None:
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    values = sl.predictions(model, images, k=4).values
    for i, image in enumerate(images):
        scores = by_hand(image)
        total = sum(math.exp(s) for s in scores)
        order = sorted(range(6), key=lambda j: -scores[j])[:4]
        assert values["logits"][i].tolist() == pytest.approx(scores, abs=1e-4)
        assert values["indices"][i].tolist() == order
        assert values["labels"][i] == [LABELS[j] for j in order]
        assert values["probabilities"][i].tolist() == pytest.approx(
            [math.exp(scores[j]) / total for j in order], abs=1e-5
        )


def test_large_scores_do_not_overflow() -> None:
    class Loud(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 1e4 * x.mean((2, 3))

    values = sl.predictions(sl.load(Loud(), size=8, device="cpu"), torch.ones(1, 3, 8, 8)).values
    assert torch.isfinite(values["probabilities"]).all()
    assert values["probabilities"].sum().item() == pytest.approx(1)


def test_more_classes_than_there_are(model: sl.Model) -> None:
    result = sl.predictions(model, torch.rand(2, 3, 8, 8), k=100)
    assert result.values["probabilities"].shape == (2, 6)
    assert torch.allclose(result.values["probabilities"].sum(1), torch.ones(2))
    (panel,) = result.panels.values()
    assert 0 <= panel.min() <= panel.max() <= 1
    with pytest.raises(sl.SightlineError, match="k is 0; it must lie between 1 and"):
        sl.predictions(model, torch.rand(1, 3, 8, 8), k=0)
