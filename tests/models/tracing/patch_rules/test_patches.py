"""Patches in maps, against pasting them one by one."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from patched_maps import (
    COUNT,
    HEIGHT,
    LEFTS,
    TOPS,
    WIDTH,
    make_call,
    make_patched_maps,
    paste_patches,
)

from sightline.models.tracing.patch_rules.patches import (
    LOWEST_BORDER,
    PatchedMaps,
    count_multiply_adds,
    count_overlap,
    find_functional_overload,
    find_instances,
    make_call_key,
    require_patches,
    split_into_slices,
    write_patches_into,
)

aten = torch.ops.aten


def test_whole_maps_have_their_patches() -> None:
    maps = make_patched_maps()
    assert maps.build_full_maps(COUNT).equal(paste_patches(maps))
    clean = PatchedMaps(maps.clean_map, maps.regions)
    assert clean.build_full_maps(3).equal(maps.clean_map.tensor.repeat(3, 1, 1, 1))


def test_the_network_may_see_other_axes() -> None:
    maps = make_patched_maps(axes=(0, 2, 3, 1))
    seen = maps.build_full_tensor(COUNT)
    assert seen.equal(paste_patches(maps).permute(0, 2, 3, 1))
    assert maps.restore_layout(seen).equal(paste_patches(maps))
    assert maps.position_dims == [1, 2]
    assert [maps.is_channel_dim(dim) for dim in range(4)] == [False, False, False, True]
    assert maps.is_channel_dim(-1)
    assert [make_patched_maps().is_channel_dim(dim) for dim in range(4)] == [
        False, True, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize("without_patches", [False, True])
@pytest.mark.parametrize("border", [0, LOWEST_BORDER])
def test_windows_show_patches_map_and_border(without_patches: bool, border: int) -> None:
    maps = make_patched_maps()
    tops = np.array([-2, 4, 9, 0])
    lefts = np.array([0, -3, 12, 9])
    height, width = 7, 6
    windows = maps.cut_windows(tops, lefts, height, width, border, without_patches=without_patches)
    whole = maps.clean_map.tensor.repeat(COUNT, 1, 1, 1)
    whole = whole if without_patches else paste_patches(maps)
    margin = 8
    fill = -torch.inf if border == LOWEST_BORDER else 0.0
    padded = torch.nn.functional.pad(whole, [margin] * 4, value=fill)
    for window, image, top, left in zip(windows, padded, tops, lefts, strict=True):
        rows = slice(margin + top, margin + top + height)
        cols = slice(margin + left, margin + left + width)
        assert window.equal(image[:, rows, cols])


def test_regions_of_their_own_are_the_patches_themselves() -> None:
    maps = make_patched_maps()
    assert maps.cut_regions(maps.regions) is maps.patches
    clean = maps.cut_regions(maps.regions, without_patches=True)
    for patch, top, left in zip(clean, TOPS, LEFTS, strict=True):
        assert patch.equal(maps.clean_map.tensor[0, :, top : top + 4, left : left + 3])


def test_patches_beyond_the_edge_are_written_as_far_as_they_lie_inside() -> None:
    maps = torch.zeros(3, 2, HEIGHT, WIDTH)
    patches = torch.rand(3, 2, 5, 4, generator=torch.Generator().manual_seed(0)) + 1
    tops = np.array([-3, 11, -3])
    lefts = np.array([15, -2, 15])
    write_patches_into(maps, patches, tops, lefts)
    expected = torch.zeros(3, 2, HEIGHT, WIDTH)
    for index in range(3):
        for row in range(5):
            for col in range(4):
                y, x = int(tops[index]) + row, int(lefts[index]) + col
                if 0 <= y < HEIGHT and 0 <= x < WIDTH:
                    expected[index, :, y, x] = patches[index, :, row, col]
    assert maps.equal(expected)


@pytest.mark.parametrize("start", range(-6, 12))
def test_overlaps_are_counted(start: int) -> None:
    assert count_overlap(start, 4, 9) == len(set(range(start, start + 4)) & set(range(9)))


@pytest.mark.parametrize(
    ("indices", "slice_count"), [([3], 1), ([1, 2, 3], 1), ([0, 4, 8], 1), ([0, 1, 3], 3)]
)
def test_slices_hold_the_indices(indices: list[int], slice_count: int) -> None:
    slices = split_into_slices(np.array(indices))
    assert [i for part in slices for i in range(20)[part]] == indices
    assert len(slices) == slice_count


def test_patched_maps_in_nested_arguments() -> None:
    first, second = make_patched_maps(), make_patched_maps(seed=1)
    nested = ([first, 3], (torch.ones(1), second), None, {"maps": first, "dim": 2})
    assert find_instances(nested, PatchedMaps) == [first, second, first]
    assert find_instances((3, "x", [torch.float32]), PatchedMaps) == []
    with pytest.raises(TypeError, match="a survey has no patches"):
        require_patches(PatchedMaps(first.clean_map, first.regions))


def test_arguments_by_position_or_name() -> None:
    call = make_call(aten.relu.default, make_patched_maps(), 3, dim=4)
    assert call.get_argument(1, "dim") == 3
    assert call.get_argument(2, "dim") == 4
    assert call.get_argument(2, "other", 5) == 5


def test_keys_tell_calls_apart() -> None:
    constant = torch.rand(3, 4)
    traced = torch.rand(3, 4)

    def make_key(*args: object) -> object:
        return make_call_key(args, lambda tensor: 7 if tensor is traced else None)

    key = make_key(traced, {"dim": (1, 2)}, constant)
    assert key == make_key(traced, {"dim": (1, 2)}, constant)
    assert hash(key) == hash(make_key(traced, {"dim": (1, 2)}, constant))
    assert key != make_key(traced, {"dim": (2, 1)}, constant)
    assert key != make_key(traced, {"dim": (1, 2)}, constant.T)
    assert key != make_key(traced, {"dim": (1, 2)}, constant.clone())
    constant.add_(1)
    assert key != make_key(traced, {"dim": (1, 2)}, constant)


def test_in_place_operations_have_one_that_leaves_the_operand_alone() -> None:
    assert find_functional_overload(aten.relu_.default) is aten.relu.default
    assert find_functional_overload(aten.add_.Tensor) is aten.add.Tensor
    with pytest.raises(RuntimeError, match="leaves its operand alone"):
        find_functional_overload(
            SimpleNamespace(
                overloadpacket=SimpleNamespace(__name__="nosuch_"), _overloadname="default"
            )
        )


def test_multiply_adds_of_operations() -> None:
    image, weight = torch.rand(2, 3, 9, 8), torch.rand(5, 3, 3, 3)
    convolution = (image, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    result = aten.convolution.default(*convolution)
    assert result.shape == (2, 5, 7, 6)
    count = count_multiply_adds(aten.convolution.default, convolution, {}, result)
    assert count == 2 * 5 * 7 * 6 * 3 * 3 * 3
    rows, matrix = torch.rand(4, 6), torch.rand(7, 6)
    linear = torch.nn.functional.linear(rows, matrix)
    assert count_multiply_adds(aten.linear.default, (rows, matrix), {}, linear) == 4 * 6 * 7
    assert count_multiply_adds(aten.relu.default, (rows,), {}, rows) == 0
