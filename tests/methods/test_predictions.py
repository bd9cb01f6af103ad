"""The softmax by hand, on a network whose logits are known."""

import math

import pytest
import torch
from torch import Tensor, nn

import sightline as sl

LABELS = ("red", "green", "blue", "all three", "none", "half")


class ColorMeans(nn.Module):
    """Scores that are the mean normalized colours and simple sums of them."""

    def forward(self, x: Tensor) -> Tensor:
        red, green, blue = x.mean((2, 3)).unbind(1)
        total = red + green + blue
        return torch.stack([red, green, blue, total, -total, total / 2], 1)


@pytest.fixture(scope="module")
def model() -> sl.Model:
    return sl.load(
        ColorMeans(),
        mean=(0.5, 0.4, 0.3),
        std=(0.1, 0.2, 0.25),
        labels=LABELS,
        size=8,
        device="cpu",
    )


def make_images(count: int) -> Tensor:
    return torch.rand(count, 3, 8, 11, generator=torch.Generator().manual_seed(0))


def compute_scores(image: Tensor) -> list[float]:
    """The scores of one image 3×H×W."""
    normalization = ((0.5, 0.1), (0.4, 0.2), (0.3, 0.25))
    colors = [
        (float(channel.double().mean()) - mean) / std
        for channel, (mean, std) in zip(image, normalization, strict=True)
    ]
    return [*colors, sum(colors), -sum(colors), sum(colors) / 2]


def test_probabilities_are_the_softmax_of_the_scores(model: sl.Model) -> None:
    images = make_images(4)
    values = sl.predictions(model, images, k=4).values
    for i, image in enumerate(images):
        scores = compute_scores(image)
        total = sum(math.exp(score) for score in scores)
        order = sorted(range(6), key=lambda label: -scores[label])[:4]
        probabilities = [math.exp(scores[label]) / total for label in order]
        assert values["logits"][i].tolist() == pytest.approx(scores, abs=1e-4)
        assert values["indices"][i].tolist() == order
        assert values["labels"][i] == [LABELS[label] for label in order]
        assert values["probabilities"][i].tolist() == pytest.approx(probabilities, abs=1e-5)


def test_the_caption_lists_the_classes_of_the_first_image(model: sl.Model) -> None:
    result = sl.predictions(model, make_images(3), k=2)
    labels = result.values["labels"][0]
    shares = result.values["probabilities"][0].tolist()
    listing = f"{labels[0]} {shares[0]:.1%}, {labels[1]} {shares[1]:.1%}."
    assert result.captions["predictions"] == f"ColorMeans on this image: {listing}"


def test_large_scores_do_not_overflow() -> None:
    class LargeScores(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 1e4 * x.mean((2, 3))

    model = sl.load(LargeScores(), size=8, device="cpu")
    probabilities = sl.predictions(model, torch.ones(1, 3, 8, 11)).values["probabilities"]
    assert torch.isfinite(probabilities).all()
    assert probabilities.sum().item() == pytest.approx(1)


def test_scores_that_are_not_finite_are_refused() -> None:
    class Logarithms(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)).log()

    model = sl.load(Logarithms(), mean=(0.0,) * 3, std=(1.0,) * 3, size=8, device="cpu")
    with pytest.raises(sl.SightlineError, match="NaN or infinite scores"):
        sl.predictions(model, torch.zeros(1, 3, 8, 11))


def test_more_classes_than_there_are(model: sl.Model) -> None:
    result = sl.predictions(model, make_images(2), k=100)
    assert result.values["probabilities"].shape == (2, 6)
    assert torch.allclose(result.values["probabilities"].sum(1), torch.ones(2))
    (panel,) = result.panels.values()
    assert 0 <= panel.min() <= panel.max() <= 1
    with pytest.raises(sl.SightlineError, match="k is 0; it must lie between 1 and"):
        sl.predictions(model, make_images(1), k=0)


def test_the_score_of_a_target_is_no_probability(model: sl.Model) -> None:
    asked = model.with_target(sl.classes(0, 2))
    image = torch.rand(2, 3, *model.image_size)
    result = sl.predictions(asked, image)
    scores = model.logits(image)
    torch.testing.assert_close(result.values["numbers"][:, 0], scores[:, 0] + scores[:, 2])
    assert "probabilities" not in result.values
    assert "%" not in result.captions["predictions"]


def test_the_numbers_of_a_depth() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 1, 3), nn.Softplus()).eval()
    model = sl.load(network, size=16, output_kind="regression", unit="m")
    image = torch.rand(1, 3, 16, 16)
    depth = float(network(model.normalize(image)).mean().detach())
    result = sl.predictions(model, image)
    assert float(result.values["numbers"]) == pytest.approx(depth)
    assert result.captions["predictions"].endswith(f"on this image: output {depth:.4g} m.")
