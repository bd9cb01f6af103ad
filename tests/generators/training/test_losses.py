"""The losses of a style network, written out literally on images that are not square."""

import pytest
import torch
from helpers import smooth
from torch import Tensor

import sightline as sl
from sightline.generators.training.losses import PerceptualLoss
from sightline.optim.perceptual.layers import PerceptualLayers

LAYERS = PerceptualLayers(content=("relu2",), style=("relu1", "relu3"))


def make_images(count: int, height: int, width: int, seed: int) -> Tensor:
    return smooth(count, max(height, width), seed)[..., :height, :width]


def compute_features(model: sl.Model, image: Tensor, layer: str) -> Tensor:
    return model.features(image, layer)[layer].detach()


def compute_gram(features: Tensor) -> Tensor:
    """The mean over positions of the products of channels, of one image C×h×w."""
    channels, height, width = features.shape
    gram = torch.zeros(channels, channels)
    for y in range(height):
        for x in range(width):
            gram += torch.outer(features[:, y, x], features[:, y, x])
    return gram / (height * width)


def compute_style_error(first: Tensor, second: Tensor) -> Tensor:
    """Gatys' E = Σ(G − A)²/4C²."""
    return (first - second).square().sum() / (4 * len(first) ** 2)


@pytest.fixture(scope="module")
def photos() -> Tensor:
    return make_images(3, 24, 32, seed=1)


@pytest.fixture(scope="module")
def styles() -> list[Tensor]:
    return [make_images(1, 28, 36, seed=2), make_images(1, 40, 24, seed=3)]


def test_losses_are_in_units_of_untouched_and_unrelated_photographs(
    tiny: sl.Model, photos: Tensor, styles: list[Tensor]
) -> None:
    perceptual_loss = PerceptualLoss(tiny, LAYERS, styles, photos)
    photo = make_images(2, 24, 32, seed=5)
    stylized = make_images(2, 24, 32, seed=6)
    style_indices = [1, 0]
    terms = perceptual_loss.compute_terms(stylized, photo, torch.tensor(style_indices))

    sample = compute_features(tiny, photos, "relu2")
    unit = sum((sample[i] - sample[i - 1]).square().mean() for i in range(3)) / 3
    difference = compute_features(tiny, stylized, "relu2") - compute_features(tiny, photo, "relu2")
    content = difference.square().mean((1, 2, 3)) / unit
    torch.testing.assert_close(terms.content, content, rtol=1e-4, atol=1e-6)

    style = torch.zeros(2)
    for layer in LAYERS.style:
        photo_grams = [compute_gram(features) for features in compute_features(tiny, photos, layer)]
        stylized_features = compute_features(tiny, stylized, layer)
        for index, style_index in enumerate(style_indices):
            target = compute_gram(compute_features(tiny, styles[style_index], layer)[0])
            unit = sum(compute_style_error(gram, target) for gram in photo_grams) / 3
            error = compute_style_error(compute_gram(stylized_features[index]), target)
            style[index] += error / unit / len(LAYERS.style)
    torch.testing.assert_close(terms.style, style, rtol=1e-3, atol=1e-5)


def test_untouched_photographs_have_a_style_loss_of_1_and_no_content_loss(
    tiny: sl.Model, photos: Tensor, styles: list[Tensor]
) -> None:
    perceptual_loss = PerceptualLoss(tiny, LAYERS, styles, photos)
    for style_index in range(2):
        indices = torch.full((3,), style_index)
        terms = perceptual_loss.compute_terms(photos, photos, indices)
        assert float(terms.style.mean()) == pytest.approx(1, rel=1e-4)
        assert terms.content.abs().max() < 1e-6


def test_the_style_itself_has_no_style_loss(
    tiny: sl.Model, photos: Tensor, styles: list[Tensor]
) -> None:
    perceptual_loss = PerceptualLoss(tiny, LAYERS, styles, photos)
    matching = perceptual_loss.compute_terms(styles[1], styles[1], torch.tensor([1]))
    assert float(matching.style) < 1e-6
    other = perceptual_loss.compute_terms(styles[1], styles[1], torch.tensor([0]))
    assert float(other.style) > 0.01


def test_unrelated_photographs_have_a_content_loss_of_1(
    tiny: sl.Model, photos: Tensor, styles: list[Tensor]
) -> None:
    perceptual_loss = PerceptualLoss(tiny, LAYERS, styles, photos)
    terms = perceptual_loss.compute_terms(photos.roll(1, 0), photos, torch.zeros(3).long())
    assert float(terms.content.mean()) == pytest.approx(1, rel=1e-4)


def test_the_gradient_reaches_the_restyled_images_only(
    tiny: sl.Model, photos: Tensor, styles: list[Tensor]
) -> None:
    perceptual_loss = PerceptualLoss(tiny, LAYERS, styles, photos)
    stylized = make_images(3, 24, 32, seed=6).requires_grad_()
    photo = photos.clone().requires_grad_()
    terms = perceptual_loss.compute_terms(stylized, photo, torch.zeros(3).long())
    (terms.content + terms.style).sum().backward()
    assert stylized.grad is not None
    assert stylized.grad.abs().max() > 0
    assert photo.grad is None
