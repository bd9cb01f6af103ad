"""Positions of any layer."""

import pytest
import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.models.layers.feature_maps import reshape_to_feature_maps, reshape_to_unit_grid

GENERATOR = torch.Generator().manual_seed(0)
SCORES = torch.rand(2, 4, generator=GENERATOR)


# ── positions ──


def number_positions(count: int, rows: int, columns: int, channels: int) -> Tensor:
    """N×C×rows×columns whose values all differ."""
    return (
        torch.arange(count * channels * rows * columns).view(count, channels, rows, columns) * 1.0
    )


@pytest.mark.parametrize(("rows", "columns"), [(6, 9), (7, 7), (4, 11)])
def test_maps_are_returned_as_they_are(rows: int, columns: int) -> None:
    maps = number_positions(2, rows, columns, channels=5)
    assert reshape_to_feature_maps(maps, rows * 16, columns * 16) is maps


@pytest.mark.parametrize(("rows", "columns"), [(6, 9), (7, 7), (4, 11)])
def test_channels_may_come_last(rows: int, columns: int) -> None:
    maps = number_positions(2, rows, columns, channels=24)
    channels_last = maps.permute(0, 2, 3, 1).contiguous()
    assert torch.equal(reshape_to_feature_maps(channels_last, rows * 16, columns * 16), maps)


@pytest.mark.parametrize(("rows", "columns"), [(6, 9), (7, 7), (12, 18), (12, 8)])
@pytest.mark.parametrize("extra_tokens", [0, 1, 5])
def test_tokens_lie_on_the_grid_of_the_image(rows: int, columns: int, extra_tokens: int) -> None:
    maps = number_positions(2, rows, columns, channels=3)
    image_tokens = [maps[:, :, row, column] for row in range(rows) for column in range(columns)]
    class_tokens = [torch.full((2, 3), -1.0)] * extra_tokens
    tokens = torch.stack([*class_tokens, *image_tokens], 1)
    assert torch.equal(reshape_to_feature_maps(tokens, rows * 16, columns * 16), maps)


@pytest.mark.parametrize("shape", [(2, 7), (2, 5, 3), (2, 3, 4, 5, 6)])
def test_features_without_positions(shape: tuple[int, ...]) -> None:
    with pytest.raises(SightlineError, match="has no positions in the image: its output is"):
        reshape_to_feature_maps(torch.zeros(shape), 96, 144)


def test_the_units_of_a_vector_have_one_position() -> None:
    image = torch.zeros(2, 3, 96, 144)
    assert torch.equal(reshape_to_unit_grid(SCORES, image), SCORES.view(2, 4, 1, 1))
    maps = number_positions(2, 6, 9, channels=4)
    assert reshape_to_unit_grid(maps, image) is maps
    tokens = maps.flatten(2).transpose(1, 2)
    assert torch.equal(reshape_to_unit_grid(tokens, image), maps)


def test_a_single_token_is_a_vector() -> None:
    feature = torch.randn(2, 1, 5, generator=torch.Generator().manual_seed(3))
    image = torch.zeros(2, 3, 24, 32)
    assert torch.equal(reshape_to_unit_grid(feature, image), feature[:, 0, :, None, None])
    with pytest.raises(SightlineError, match="no positions"):
        reshape_to_unit_grid(feature, image[:1])
