"""The part of an image that one position of a layer sees, against arithmetic by hand."""

import torch
from helpers import small_network

import sightline as sl
from sightline.models.tracing.crops import (
    crop_padded_window,
    find_receptive_box,
    find_receptive_window,
)


def test_rows_and_columns_are_not_exchanged() -> None:
    """conv1 sees 3×3 pixels around its own position, conv2 (behind a pooling by 2) 8×8."""
    model = sl.load(small_network(), size=32)
    image = torch.zeros(1, 3, 24, 40)
    assert find_receptive_box(model, "conv1", 5, 11, image) == (4, 10, 7, 13)
    assert find_receptive_window(model, "conv1", 0, 39, image) == (-1, 38, 2, 41)
    assert find_receptive_box(model, "conv1", 0, 39, image) == (0, 38, 2, 40)
    top, left, bottom, right = find_receptive_window(model, "conv2", 2, 9, image)
    assert (bottom - top, right - left) == (8, 8)
    assert (left - top) == 2 * (9 - 2)


def test_a_layer_without_positions_sees_the_whole_image() -> None:
    model = sl.load(small_network(), size=32)
    image = torch.zeros(1, 3, 24, 40)
    assert find_receptive_box(model, "fc", 0, 0, image) == (0, 0, 24, 40)
    assert find_receptive_window(model, "fc", 0, 0, image) == (0, 0, 24, 40)


def test_a_window_larger_than_the_image_is_the_whole_image() -> None:
    """conv2 sees 8 rows and columns; the image has 6 rows."""
    model = sl.load(small_network(), size=32)
    image = torch.zeros(1, 3, 6, 40)
    top, left, bottom, right = find_receptive_window(model, "conv2", 1, 9, image)
    assert (top, bottom) == (0, 6)
    assert right - left == 8


def test_beyond_the_image_a_crop_is_gray() -> None:
    image = torch.arange(2.0 * 3 * 4 * 5).view(2, 3, 4, 5)
    crop = crop_padded_window(image, (-1, 2, 3, 7))
    assert crop.shape == (2, 3, 4, 5)
    assert torch.equal(crop[:, :, 1:, :3], image[:, :, :3, 2:])
    assert bool((crop[:, :, 0] == 0.5).all())
    assert bool((crop[:, :, :, 3:] == 0.5).all())
