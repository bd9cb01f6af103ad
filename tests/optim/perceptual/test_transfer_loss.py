"""Losses in tiles against those of the whole image, and what the losses are zero for."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import sightline as sl
from sightline.optim.perceptual.losses import compute_moments
from sightline.optim.perceptual.tiling import measure_feature_map_sizes, plan_tiles
from sightline.optim.perceptual.transfer_loss import (
    StyleRegion,
    StyleTransferLoss,
    compute_region_weights,
    compute_tiled_loss,
    measure_content_losses,
    measure_style_losses,
)

TILE_SIDE = 48


def make_loss(
    case: Any,
    make_picture: Callable[..., Tensor],
    size: tuple[int, int],
    *,
    kind: str,
    masked: bool,
) -> StyleTransferLoss:
    """The loss of an image to random pictures; masked, with two styles in two regions."""
    model = case.model
    styles = [
        {
            name: compute_moments(features)
            for name, features in model.features(make_picture(60, 50, seed), case.style).items()
        }
        for seed in (1, 2)
    ]
    content_features = model.features(make_picture(*size, 3), case.content)
    regions = [StyleRegion(1.0, styles[0])]
    if masked:
        mask = torch.zeros(1, 1, *size)
        mask[..., : size[1] // 3] = 1
        sizes = measure_feature_map_sizes(model, case.style, *size)
        regions = [
            StyleRegion(0.7, styles[0], compute_region_weights(mask, sizes)),
            StyleRegion(0.3, styles[1], compute_region_weights(1 - mask, sizes)),
        ]
    return StyleTransferLoss(
        style_weights={name: 1.0 + index for index, name in enumerate(case.style)},
        regions=regions,
        content_targets={name: (0.5, content_features[name]) for name in case.content},
        kind=kind,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(("kind", "masked"), [("gram", False), ("gram", True), ("w2", False)])
@pytest.mark.parametrize("size", [(150, 97), (128, 160)])
def test_tiles_have_the_gradient_of_the_whole_image(
    case: Any,
    make_picture: Callable[..., Tensor],
    kind: str,
    masked: bool,
    size: tuple[int, int],
) -> None:
    loss = make_loss(case, make_picture, size, kind=kind, masked=masked)
    image = make_picture(*size, 5).requires_grad_()
    whole_loss = -loss.make_objective().bind(case.model)(image, {})
    (gradient,) = torch.autograd.grad(whole_loss.sum(), image)
    plan = plan_tiles(case.model, loss.layers, size, TILE_SIDE)
    tiled_loss, tiled_gradient = compute_tiled_loss(image.detach(), loss, case.model, plan)
    # Square roots of covariances that are nearly singular lose digits in single precision.
    loss_tolerance, gradient_tolerance = (1e-4, 1e-4) if kind == "gram" else (1e-3, 2e-2)
    torch.testing.assert_close(tiled_loss, whole_loss.detach(), rtol=loss_tolerance, atol=1e-7)
    error = float((tiled_gradient - gradient).norm() / gradient.norm())
    assert error < gradient_tolerance


def test_the_tiled_loss_is_a_node_of_autograd(
    case: Any, make_picture: Callable[..., Tensor]
) -> None:
    size = (100, 130)
    loss = make_loss(case, make_picture, size, kind="gram", masked=False)
    image = make_picture(*size, 5).requires_grad_()
    score = loss.make_objective(tile_side=TILE_SIDE).bind(case.model)(image, {})
    (2.5 * score).sum().backward()
    plan = plan_tiles(case.model, loss.layers, size, TILE_SIDE)
    _, gradient = compute_tiled_loss(image.detach(), loss, case.model, plan)
    torch.testing.assert_close(image.grad, -2.5 * gradient)


@pytest.mark.parametrize("kind", ["gram", "w2", "sliced"])
def test_the_loss_is_zero_only_for_the_image_itself(
    tiny: sl.Model, make_picture: Callable[..., Tensor], kind: str
) -> None:
    image = make_picture(60, 50)
    features = tiny.features(image, ("relu1", "relu2"))
    targets = {name: compute_moments(maps) for name, maps in features.items()}
    loss = StyleTransferLoss(
        style_weights={"relu1": 1.0, "relu2": 2.0},
        regions=[] if kind == "sliced" else [StyleRegion(1.0, targets)],
        content_targets={"relu2": (1.0, features["relu2"])},
        kind=kind,  # type: ignore[arg-type]
        style_features=features if kind == "sliced" else None,
    )
    score = loss.make_objective().bind(tiny)
    assert abs(float(score(image, {}))) < 1e-4
    assert float(score(make_picture(60, 50, 3), {})) < -1e-4


def test_the_loss_sums_weighted_layers_by_any_of_their_names(
    make_picture: Callable[..., Tensor],
) -> None:
    model = sl.load("squeezenet1_1", weights="random")
    names = ["relu1", "fire2"]
    target_features = model.features(make_picture(64, 80), names)
    image = make_picture(64, 80, 4)
    features = model.features(image, names)
    targets = {name: compute_moments(maps) for name, maps in target_features.items()}
    loss = StyleTransferLoss(
        {"relu1": 3.0, "fire2": 5.0},
        [StyleRegion(1.0, targets)],
        {"fire2": (2.0, target_features["fire2"])},
    )
    expected = 2 * (features["fire2"] - target_features["fire2"]).square().mean()
    for name, weight in loss.style_weights.items():
        difference = compute_moments(features[name]).gram - targets[name].gram
        expected = expected + weight * difference.square().mean() / 4
    torch.testing.assert_close(-loss.make_objective().bind(model)(image, {})[0], expected)


def test_each_region_counts_by_its_share(
    tiny: sl.Model, make_picture: Callable[..., Tensor]
) -> None:
    """Gatys' E of the weighted mean of outer products, region by region."""
    image = make_picture(40, 56)
    features = tiny.features(image, ["relu2"])["relu2"]
    vectors = features[0].flatten(1)
    target = compute_moments(tiny.features(make_picture(30, 50, 1), ["relu2"])["relu2"])
    weights = torch.rand(2, *features.shape[2:], generator=torch.Generator().manual_seed(0))
    weights = weights / weights.sum((1, 2), keepdim=True)
    shares = (0.7, 0.2)
    regions = [
        StyleRegion(share, {"relu2": target}, {"relu2": weights[index : index + 1]})
        for index, share in enumerate(shares)
    ]
    loss = StyleTransferLoss({"relu2": 3.0}, regions, {})
    expected = 0.0
    for share, region_weights in zip(shares, weights, strict=True):
        gram = (vectors * region_weights.flatten()) @ vectors.T
        distance = (gram - target.gram[0]).square().sum() / (4 * len(vectors) ** 2)
        expected += 3.0 * share * float(distance)
    score = loss.make_objective().bind(tiny)(image, {})
    assert -float(score) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("kind", "masked", "tile_side"),
    [("gram", False, None), ("gram", True, TILE_SIDE), ("w2", True, None)],
)
def test_measured_losses_add_up_to_the_objective(
    case: Any,
    make_picture: Callable[..., Tensor],
    kind: str,
    masked: bool,
    tile_side: int | None,
) -> None:
    """Measured without weights, by layer."""
    size = (90, 120)
    loss = make_loss(case, make_picture, size, kind=kind, masked=masked)
    image = make_picture(*size, 5)
    style_losses = measure_style_losses(loss, case.model, image, tile_side)
    content_losses = measure_content_losses(loss, case.model, image, tile_side)
    total = 0.0
    for name, weight in loss.style_weights.items():
        total += weight * style_losses[name]
    for name, (weight, _) in loss.content_targets.items():
        total += weight * content_losses[name]
    score = loss.make_objective(tile_side).bind(case.model)(image, {})
    assert total == pytest.approx(-float(score), rel=1e-3)


def test_sliced_losses_add_up_to_the_objective(
    tiny: sl.Model, make_picture: Callable[..., Tensor]
) -> None:
    image = make_picture(60, 80, 5)
    style_features = tiny.features(make_picture(50, 70, 1), ("relu1", "relu2"))
    loss = StyleTransferLoss({"relu1": 3.0, "relu2": 5.0}, [], {}, "sliced", style_features, seed=3)
    losses = measure_style_losses(loss, tiny, image, None)
    expected = 3.0 * losses["relu1"] + 5.0 * losses["relu2"]
    score = loss.make_objective().bind(tiny)(image, {})
    assert -float(score) == pytest.approx(expected, rel=1e-4)
