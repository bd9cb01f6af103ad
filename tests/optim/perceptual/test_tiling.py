"""Tiles with margins: each position belongs to one tile, whose features are the whole image's."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sightline as sl
from sightline.models.tracing.receptive_field import receptive_field
from sightline.optim.perceptual.tiling import (
    iterate_image_tiles,
    measure_feature_map_sizes,
    plan_tiles,
)

SIZES = [(150, 97), (64, 200)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_feature_map_sizes_are_those_of_the_whole_image(
    case: Any, make_picture: Callable[..., Tensor], height: int, width: int
) -> None:
    features = case.model.features(make_picture(height, width), case.style)
    sizes = measure_feature_map_sizes(case.model, case.style, height, width)
    assert sizes == {name: tuple(maps.shape[-2:]) for name, maps in features.items()}


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_every_position_belongs_to_one_tile(
    case: Any, make_picture: Callable[..., Tensor], height: int, width: int
) -> None:
    """And the tile's features there are those of the whole image."""
    model, layers = case.model, case.style
    picture = make_picture(height, width)
    features = model.features(picture, layers)
    counts = {name: torch.zeros(maps.shape[-2:]) for name, maps in features.items()}
    tile_count = 0
    for tile in iterate_image_tiles(model, layers, height, width, 48):
        tile_count += 1
        tile_features = model.features(tile.crop_image(picture).contiguous(), layers)
        for name in layers:
            tile.crop_whole_map(name, counts[name]).add_(1)
            torch.testing.assert_close(
                tile.crop_owned_features(name, tile_features[name]),
                tile.crop_whole_map(name, features[name]),
                rtol=1e-4,
                atol=1e-5,
            )
    assert tile_count > 1
    for count in counts.values():
        assert bool((count == 1).all())


def test_a_position_belongs_to_the_tile_of_its_receptive_fields_centre(tiny: sl.Model) -> None:
    """Of an image of 128×192 pixels in 2×3 tiles of 64 pixels."""
    field = receptive_field(tiny, "relu2")
    tiles = list(iterate_image_tiles(tiny, ["relu2"], 128, 192, 64))
    assert len(tiles) == 6
    for index, tile in enumerate(tiles):
        tile_row, tile_column = divmod(index, 3)
        for axis, tile_index, span in (
            (0, tile_row, tile.rows["relu2"]),
            (1, tile_column, tile.columns["relu2"]),
        ):
            first_centre = field.offset[axis] + field.size[axis] / 2
            centre = first_centre + span.map_start * field.stride[axis]
            previous_centre = centre - field.stride[axis]
            assert centre >= 64 * tile_index
            assert tile_index == 0 or previous_centre < 64 * tile_index


def test_a_small_image_is_one_tile(tiny: sl.Model) -> None:
    (tile,) = iterate_image_tiles(tiny, ["relu2"], 40, 56, 64)
    assert tile.box == (0, 0, 40, 56)


def test_a_plan_has_the_share_of_each_position(tiny: sl.Model) -> None:
    plan = plan_tiles(tiny, ["relu1", "relu2"], (64, 100), 48)
    assert plan.position_shares == {"relu1": 1 / (64 * 100), "relu2": 1 / (32 * 50)}


def test_a_layer_that_sees_the_whole_image_is_refused() -> None:
    class GlobalGate(nn.Module):
        """Its layer "head" is multiplied by a mean over the image."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.head = nn.Conv2d(4, 4, 1)
            self.last = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            x = self.head(x * x.mean((2, 3), keepdim=True))
            return self.last(x.mean((2, 3)))

    model = sl.load(GlobalGate(), mean=(0.5,) * 3, std=(0.25,) * 3, size=32)
    with pytest.raises(sl.SightlineError, match="layer head of GlobalGate sees the whole image"):
        list(iterate_image_tiles(model, ("head",), 100, 120, 48))
