"""Sheets of patches, against crops that are made here."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

import sightline as sl
from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.pages.content.sheets import (
    CARD_SIDE,
    SHEET_COLUMNS,
    Patch,
    add_gradient_sheet,
    add_layer_sheet,
    add_sheet_of_patches,
    arrange_cells,
    cut_patch,
    find_field,
    list_strongest_patches,
    shift_inside,
)


def read_pixels(explorer: Explorer, address: str) -> np.ndarray:
    content = explorer.pictures.read(address.removeprefix("pictures/"))
    assert content is not None
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) / 255


def test_strongest_patches_are_those_of_the_scan(explorer: Explorer) -> None:
    patches = list_strongest_patches(explorer, "conv2", 5, 3)
    top = explorer.scan.top("conv2")
    assert top.positions is not None
    assert explorer.model is not None
    field = sl.receptive_field(explorer.model, "conv2", 32, 32)
    for rank, patch in enumerate(patches):
        position = tuple(top.positions[rank, 5].tolist())
        assert patch.image_id == top.ids[rank, 5]
        assert patch.value == float(top.values[rank, 5])
        assert patch.position == position
        first_row, first_column, end_row, end_column = field.window(*position)
        height = end_row - first_row
        width = end_column - first_column
        assert patch.box is not None
        assert patch.box[2] - patch.box[0] == height
        assert patch.box[0] == min(max(first_row, 0), 32 - height)
        assert patch.box[1] == min(max(first_column, 0), 32 - width)


def test_more_than_the_scan_keeps_are_all_that_it_keeps(explorer: Explorer) -> None:
    assert len(list_strongest_patches(explorer, "conv2", 5, 100)) == 9


def test_a_patch_is_cut_out_of_the_original(explorer: Explorer) -> None:
    patch = Patch(2, (4, 9), (3, 17, 8, 22), 1.0)
    image = explorer.scan.image(2)
    crop = image[..., 3:8, 17:22]
    enlarged = crop.repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert torch.allclose(cut_patch(explorer, patch, 40), enlarged, atol=1 / 255)


def test_a_patch_beyond_the_image_is_gray_there(explorer: Explorer) -> None:
    patch = cut_patch(explorer, Patch(2, (0, 0), (-2, 0, 2, 4), 1.0), 40)
    assert torch.allclose(patch[..., :18, :], torch.full((), 0.5), atol=0.02)
    assert not torch.allclose(patch[..., 22:, :], torch.full((), 0.5), atol=0.02)


def test_without_a_network_a_patch_is_the_whole_image(explorer: Explorer) -> None:
    bare = Explorer(explorer.scan, None, pictures=explorer.pictures)
    patches = list_strongest_patches(bare, "conv2", 5, 2)
    assert all(patch.box is None for patch in patches)
    assert find_field(None, bare.scan, "conv2") is None
    assert add_gradient_sheet(bare, "conv2", 5, patches, 2) is None
    expected = bare.scan.thumbnail(patches[0].image_id)
    assert torch.equal(cut_patch(bare, patches[0], 32), expected)


def test_cells_lie_in_rows(explorer: Explorer) -> None:
    cells = [torch.full((1, 3, 4, 4), value) for value in (0.1, 0.2, 0.3, 0.4, 0.6)]
    sheet = arrange_cells(cells, 3)
    assert sheet.shape == (1, 3, 8, 12)
    assert torch.allclose(sheet[0, 0, ::4, ::4], torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.6, 0.5]]))
    assert arrange_cells(cells[:2], 3).shape == (1, 3, 4, 12)


def test_a_layer_sheet_has_a_cell_for_each_unit(explorer: Explorer) -> None:
    address = add_layer_sheet(explorer, "conv2", 0, 12)
    pixels = read_pixels(explorer, address)
    assert pixels.shape == (2 * CARD_SIDE, SHEET_COLUMNS * CARD_SIDE, 3)
    [patch] = list_strongest_patches(explorer, "conv2", 9, 1)
    expected = cut_patch(explorer, patch, CARD_SIDE)[0].permute(1, 2, 0).numpy()
    cell = pixels[CARD_SIDE:, CARD_SIDE : 2 * CARD_SIDE]
    assert np.abs(cell - expected).mean() < 0.05


def test_gradients_are_shown_where_the_patches_are(explorer: Explorer) -> None:
    patches = list_strongest_patches(explorer, "conv1", 3, 2)
    address = add_gradient_sheet(explorer, "conv1", 3, patches, 2)
    assert address is not None
    pixels = read_pixels(explorer, address)
    assert pixels.shape == (120, 240, 3)
    assert np.abs(pixels - 0.5).max() > 0.2  # the unit reads these pixels


@pytest.mark.parametrize("count", [1, 3])
def test_the_same_patches_are_one_picture(explorer: Explorer, count: int) -> None:
    patches = list_strongest_patches(explorer, "conv2", 5, count)
    first = add_sheet_of_patches(explorer, patches, 40, 2)
    assert first == add_sheet_of_patches(explorer, patches, 40, 2)
    assert first != add_sheet_of_patches(explorer, patches, 48, 2)
    moved = [Patch(patch.image_id, patch.position, (0, 0, 5, 5), 0) for patch in patches]
    assert first != add_sheet_of_patches(explorer, moved, 40, 2)


@pytest.mark.parametrize(
    ("box", "moved"),
    [
        ((-3, 4, 7, 14), (0, 4, 10, 14)),
        ((25, 40, 35, 50), (22, 38, 32, 48)),
        ((2, 3, 12, 13), (2, 3, 12, 13)),
    ],
)
def test_a_box_is_moved_into_the_image(
    box: tuple[int, int, int, int], moved: tuple[int, int, int, int]
) -> None:
    assert shift_inside(box, (32, 48)) == moved
