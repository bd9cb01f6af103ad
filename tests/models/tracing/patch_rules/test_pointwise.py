"""What treats positions by themselves, against torch on the whole maps."""

import torch
from patched_maps import COUNT, HEIGHT, WIDTH, assert_rule_is_exact, make_call, make_patched_maps

from sightline.models.tracing.patch_rules.pointwise import (
    apply_linear_to_patches,
    apply_pointwise_to_patches,
    are_alike,
    batch_normalize_patches,
    concatenate_patches,
    layer_normalize_patches,
)

aten = torch.ops.aten
CHANNELS_LAST = (0, 2, 3, 1)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4))


def test_functions_of_the_elements() -> None:
    first = make_patched_maps()
    for call in (
        make_call(aten.relu.default, first),
        make_call(aten.gelu.default, first, approximate="tanh"),
        make_call(aten.clamp.default, first, -0.5, 0.25),
        make_call(aten.add.Tensor, first, make_patched_maps(seed=1), alpha=3),
        make_call(aten.mul.Tensor, first, draw(6, 1, 1)),
        make_call(aten.sub.Tensor, draw(1, 6, 1, 1), first),
    ):
        assert_rule_is_exact(apply_pointwise_to_patches, call)


def test_functions_of_maps_with_channels_last() -> None:
    maps = make_patched_maps(axes=CHANNELS_LAST)
    assert_rule_is_exact(apply_pointwise_to_patches, make_call(aten.mul.Tensor, maps, draw(6)))


def test_constants_that_differ_between_images_or_positions_are_left_to_whole_maps() -> None:
    maps = make_patched_maps()
    for constant in (
        draw(COUNT, 1, 1, 1),
        draw(HEIGHT, 1),
        draw(1, 1, WIDTH),
        draw(1, 1, 6, 1, 1),
    ):
        assert apply_pointwise_to_patches(make_call(aten.mul.Tensor, maps, constant)) is None


def test_maps_of_another_layout_are_left_to_whole_maps() -> None:
    maps = make_patched_maps()
    other = make_patched_maps(axes=CHANNELS_LAST)
    assert not are_alike([maps, other])
    assert are_alike([maps, make_patched_maps(channels=2)])
    assert apply_pointwise_to_patches(make_call(aten.add.Tensor, maps, other)) is None


def test_concatenation_along_channels() -> None:
    inputs = [make_patched_maps(), make_patched_maps(channels=2, seed=1)]
    assert_rule_is_exact(concatenate_patches, make_call(aten.cat.default, inputs, 1))
    assert concatenate_patches(make_call(aten.cat.default, inputs, 2)) is None
    mixed = [inputs[0], draw(COUNT, 2, HEIGHT, WIDTH)]
    assert concatenate_patches(make_call(aten.cat.default, mixed, 1)) is None


def test_batch_norm_with_running_statistics() -> None:
    statistics = (draw(6), draw(6), draw(6), draw(6).exp())
    maps = make_patched_maps()
    call = make_call(aten.native_batch_norm.default, maps, *statistics, False, 0.1, 1e-5)
    assert_rule_is_exact(batch_normalize_patches, call)
    call = make_call(aten.native_batch_norm.default, maps, *statistics, True, 0.1, 1e-5)
    assert batch_normalize_patches(call) is None


def test_layer_norm_over_channels() -> None:
    maps = make_patched_maps(axes=CHANNELS_LAST)
    call = make_call(aten.native_layer_norm.default, maps, [6], draw(6), draw(6), 1e-5)
    assert_rule_is_exact(layer_normalize_patches, call)
    shape = [HEIGHT, WIDTH]
    call = make_call(aten.native_layer_norm.default, make_patched_maps(), shape, None, None, 1e-5)
    assert layer_normalize_patches(call) is None


def test_linear_of_the_channels() -> None:
    maps = make_patched_maps(axes=CHANNELS_LAST)
    call = make_call(aten.linear.default, maps, draw(4, 6), draw(4))
    assert_rule_is_exact(apply_linear_to_patches, call)
    call = make_call(aten.linear.default, make_patched_maps(), draw(4, WIDTH))
    assert apply_linear_to_patches(call) is None
