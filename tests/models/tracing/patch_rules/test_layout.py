"""What moves the numbers of maps about, against torch on the whole maps."""

import torch
from patched_maps import COUNT, HEIGHT, WIDTH, assert_rule_is_exact, make_call, make_patched_maps

from sightline.models.tracing.patch_rules.layout import (
    copy_patches,
    pad_patched_maps,
    permute_patched_maps,
    rearrange_patch_channels,
    reshape_patch_channels,
    transpose_patched_maps,
)
from sightline.models.tracing.patch_rules.patches import PatchedMaps
from sightline.models.tracing.patch_rules.reductions import average_patched_maps

aten = torch.ops.aten


def permute(maps: PatchedMaps, dims: list[int]) -> PatchedMaps | None:
    return permute_patched_maps(make_call(aten.permute.default, maps, dims))


def test_permuted_maps_share_their_patches() -> None:
    maps = make_patched_maps()
    last = permute(maps, [0, 2, 3, 1])
    assert last is not None
    assert last.patches is maps.patches
    assert last.build_full_tensor(COUNT).equal(maps.build_full_maps(COUNT).permute(0, 2, 3, 1))
    again = permute(last, [0, 3, 1, 2])
    assert again is not None
    assert again.axes is None
    turned = permute(last, [0, 2, 1, 3])
    assert turned is not None
    assert turned.build_full_tensor(COUNT).equal(maps.build_full_maps(COUNT).permute(0, 3, 2, 1))
    assert permute(maps, [1, 0, 2, 3]) is None


def test_transposed_maps() -> None:
    maps = make_patched_maps()
    result = transpose_patched_maps(make_call(aten.transpose.int, maps, 1, 3))
    assert isinstance(result, PatchedMaps)
    assert result.build_full_tensor(COUNT).equal(maps.build_full_maps(COUNT).transpose(1, 3))
    assert transpose_patched_maps(make_call(aten.transpose.int, maps, 0, 1)) is None


def test_views_of_the_channels() -> None:
    maps = make_patched_maps()
    for call in (
        make_call(aten.slice.Tensor, maps, 1, 1, 5),
        make_call(aten.unsqueeze.default, maps, 1),
        make_call(aten.split.Tensor, maps, 4, 1),
        make_call(aten.select.int, maps, 1, 2),
    ):
        assert_rule_is_exact(rearrange_patch_channels, call)
    for call in (
        make_call(aten.slice.Tensor, maps, 2, 1, 5),
        make_call(aten.split.Tensor, maps, 2, 0),
    ):
        assert rearrange_patch_channels(call) is None


def test_reshaped_channels() -> None:
    maps = make_patched_maps()
    call = make_call(aten.view.default, maps, [COUNT, 2, 3, HEIGHT, WIDTH])
    assert_rule_is_exact(reshape_patch_channels, call)
    for shape in ([COUNT, 6, WIDTH, HEIGHT], [COUNT * 2, 3, HEIGHT, WIDTH], [COUNT, -1]):
        assert reshape_patch_channels(make_call(aten.view.default, maps, shape)) is None


def test_copies() -> None:
    assert_rule_is_exact(copy_patches, make_call(aten.clone.default, make_patched_maps()))


def test_padding_around_the_positions() -> None:
    maps = make_patched_maps()
    for padding in ([1, 2, 3, 0], [2, 0]):
        assert_rule_is_exact(
            pad_patched_maps, make_call(aten.constant_pad_nd.default, maps, padding, 1.5)
        )
    for padding in ([-1, 0], [0, 0, 0, 0, 1, 1]):
        call = make_call(aten.constant_pad_nd.default, maps, padding, 0.0)
        assert pad_patched_maps(call) is None


def test_means_over_all_positions() -> None:
    for axes, dims in ((None, [2, 3]), (None, [-1, -2]), ((0, 2, 3, 1), [1, 2])):
        call = make_call(aten.mean.dim, make_patched_maps(axes=axes), dims)
        assert_rule_is_exact(lambda call, dims=dims: average_patched_maps(call, dims), call)
    call = make_call(aten.mean.dim, make_patched_maps(), [1, 2])
    assert average_patched_maps(call, [1, 2]) is None
    assert average_patched_maps(call, None) is None
