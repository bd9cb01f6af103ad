"""Statistics in regions: of the whole image and summed over tiles."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import smooth
from torch import Tensor

import sightline as sl
from sightline.optim.perceptual.losses import compute_moments
from sightline.optim.perceptual.regions import (
    StyleRegion,
    compute_region_moments,
    extract_perceptual_features,
)
from sightline.optim.perceptual.tiling import measure_feature_map_sizes
from sightline.optim.perceptual.transfer_loss import compute_image_moments, compute_region_weights

HEIGHT, WIDTH = 150, 97


def make_regions(model: sl.Model, layers: tuple[str, ...]) -> list[StyleRegion]:
    """The left third of the image, and what remains below a border that fades."""
    mask = torch.zeros(1, 1, HEIGHT, WIDTH)
    mask[..., : WIDTH // 3] = 1
    faded_mask = (1 - mask) * torch.linspace(0, 1, HEIGHT).view(1, 1, -1, 1)
    sizes = measure_feature_map_sizes(model, layers, HEIGHT, WIDTH)
    return [
        StyleRegion(0.7, {}, compute_region_weights(mask, sizes)),
        StyleRegion(0.3, {}, compute_region_weights(faded_mask, sizes)),
        StyleRegion(1.0, {}),
    ]


def test_weights_of_a_region_are_its_mask_at_the_layers_size() -> None:
    """Of a mask of 4×6 pixels at 2×3: the mean of each 2×2 pixels, scaled to a sum of 1."""
    mask = torch.arange(24.0).view(1, 1, 4, 6)
    weights = compute_region_weights(mask, {"coarse": (2, 3), "fine": (4, 6)})
    expected = torch.zeros(1, 2, 3)
    for row in range(2):
        for column in range(3):
            block = mask[0, 0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            expected[0, row, column] = block.mean()
    torch.testing.assert_close(weights["coarse"], expected / expected.sum())
    torch.testing.assert_close(weights["fine"], mask[0] / mask.sum())


def test_a_region_sees_only_its_part_of_the_image(tiny: sl.Model) -> None:
    """Two images side by side, the right one shorter in width."""
    joined = torch.cat([smooth(1, 40, 1), smooth(1, 40, 2)[..., :24]], 3)
    features = tiny.features(joined, ["relu1"])
    mask = torch.zeros(1, 40, 64)
    mask[..., :40] = 1
    region = StyleRegion(1.0, {}, {"relu1": mask / mask.sum()})
    (moments,) = compute_region_moments(tiny, ["relu1"], joined, [region], None)
    expected = compute_moments(features["relu1"][..., :40])
    torch.testing.assert_close(moments["relu1"].gram, expected.gram)
    torch.testing.assert_close(moments["relu1"].mean, expected.mean)


def test_moments_of_tiles_add_up_to_those_of_the_image(
    case: Any, make_picture: Callable[..., Tensor]
) -> None:
    model, layers = case.model, case.style
    picture = make_picture(HEIGHT, WIDTH)
    regions = make_regions(model, layers)
    whole = compute_region_moments(model, layers, picture, regions, None)
    tiled = compute_region_moments(model, layers, picture, regions, 48)
    for whole_moments, tiled_moments in zip(whole, tiled, strict=True):
        for name in layers:
            whole_layer, tiled_layer = whole_moments[name], tiled_moments[name]
            torch.testing.assert_close(tiled_layer.mean, whole_layer.mean, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(tiled_layer.gram, whole_layer.gram, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("tile_side", [None, 48])
def test_moments_of_an_image_are_those_of_its_features(
    tiny: sl.Model, make_picture: Callable[..., Tensor], tile_side: int | None
) -> None:
    picture = make_picture(HEIGHT, WIDTH)
    moments = compute_image_moments(tiny, ("relu1", "relu3"), picture, tile_side)
    for name, features in tiny.features(picture, ("relu1", "relu3")).items():
        vectors = features[0].flatten(1)
        expected_gram = vectors @ vectors.T / vectors.shape[1]
        torch.testing.assert_close(moments[name].mean[0], vectors.mean(1), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(moments[name].gram[0], expected_gram, rtol=1e-3, atol=1e-5)


def test_features_are_assembled_from_tiles(case: Any, make_picture: Callable[..., Tensor]) -> None:
    picture = make_picture(HEIGHT, WIDTH)
    layers = (*case.style, *case.content)
    whole = extract_perceptual_features(case.model, layers, picture, None)
    assembled = extract_perceptual_features(case.model, layers, picture, 48)
    assert extract_perceptual_features(case.model, (), picture, 48) == {}
    for name in layers:
        torch.testing.assert_close(assembled[name], whole[name], rtol=1e-4, atol=1e-5)
