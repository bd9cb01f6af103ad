"""Convolution and pooling of patches, against torch on the whole maps."""

import pytest
import torch
from patched_maps import assert_rule_is_exact, make_call, make_patched_maps

from sightline.models.tracing.patch_rules.sliding import (
    adaptive_pool_patches,
    average_pool_patches,
    convolve_patches,
    count_seen_elements,
    locate_first_seen,
    max_pool_patches,
)

aten = torch.ops.aten


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("size", "stride", "padding", "dilation", "groups"),
    [
        ((3, 3), [1], [1], [1], 1),
        ((1, 1), [1], [0], [1], 1),
        ((3, 2), [2, 1], [0, 1], [1], 1),
        ((2, 3), [1], [2], [1, 2], 1),
        ((3, 3), [1], [1], [1], 6),
        ((3, 1), [3, 2], [1, 0], [1], 2),
    ],
)
def test_convolutions(
    size: tuple[int, int], stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> None:
    weight, bias = draw(12, 6 // groups, *size), draw(12)
    args = (weight, bias, stride, padding, dilation, False, [0, 0], groups)
    call = make_call(aten.convolution.default, make_patched_maps(), *args)
    assert_rule_is_exact(convolve_patches, call)


def test_a_transposed_convolution_is_left_to_whole_maps() -> None:
    args = (draw(6, 4, 2, 2), None, [2, 2], [0, 0], [1, 1], True, [0, 0], 1)
    assert convolve_patches(make_call(aten.convolution.default, make_patched_maps(), *args)) is None


def test_a_patch_that_fills_nearly_the_whole_map_is_not_cut_out() -> None:
    args = (draw(2, 6, 13, 15), None, [1, 1], [6, 7], [1, 1], False, [0, 0], 1)
    assert convolve_patches(make_call(aten.convolution.default, make_patched_maps(), *args)) is None


@pytest.mark.parametrize(
    "args",
    [
        ([2, 2],),
        ([3, 2], [2, 1], [1, 1]),
        ([3], [2], [1], [1], True),
        ([2, 3], [1, 1], [0, 1], [2, 1]),
    ],
)
def test_max_pooling(args: tuple[object, ...]) -> None:
    maps = make_patched_maps()
    call = make_call(aten.max_pool2d_with_indices.default, maps, *args)
    assert_rule_is_exact(max_pool_patches, call)
    result = max_pool_patches(call)
    assert isinstance(result, tuple)
    assert result[1] is None  # the indices


@pytest.mark.parametrize("count_padding", [True, False])
@pytest.mark.parametrize("divisor", [None, 5])
@pytest.mark.parametrize("ceil_mode", [True, False])
def test_average_pooling(count_padding: bool, divisor: int | None, ceil_mode: bool) -> None:
    args = ([3, 2], [2, 1], [1, 1], ceil_mode, count_padding, divisor)
    call = make_call(aten.avg_pool2d.default, make_patched_maps(), *args)
    assert_rule_is_exact(average_pool_patches, call)


@pytest.mark.parametrize("size", [[1, 1], [7, 17], [2, 1]])
def test_adaptive_pooling(size: list[int]) -> None:
    maps = make_patched_maps()
    call = make_call(aten._adaptive_avg_pool2d.default, maps, size)
    if size == [2, 1]:  # each output sees half of the map: no patch
        assert adaptive_pool_patches(call) is None
        return
    assert_rule_is_exact(adaptive_pool_patches, call)


def test_an_irregular_adaptive_pooling_is_left_to_whole_maps() -> None:
    call = make_call(aten._adaptive_avg_pool2d.default, make_patched_maps(), [3, 5])
    assert adaptive_pool_patches(call) is None


@pytest.mark.parametrize("window", [(3, 1, 1, 1), (2, 2, 0, 1), (3, 2, 1, 2)])
def test_what_neighbouring_outputs_see(window: tuple[int, int, int, int]) -> None:
    size, stride, padding, dilation = window
    seen = {
        index * stride - padding + dilation * step for index in range(4, 7) for step in range(size)
    }
    assert locate_first_seen(window, 4) == min(seen)
    assert count_seen_elements(window, 3) == max(seen) - min(seen) + 1
