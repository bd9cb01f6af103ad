"""The loss at each size: its targets and weights, and the size at which a style is seen."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import small_network, smooth
from torch import Tensor, nn

import sightline as sl
from sightline.images.transforms import resize_bicubic
from sightline.methods.style.setup import StyleLossBuilder
from sightline.optim.perceptual.layers import PerceptualLayers
from sightline.optim.perceptual.presets import STYLE_PRESETS, StylePreset

LAYERS = PerceptualLayers(content=("relu2", "relu3"), style=("relu1", "relu3"))

SIZE = (40, 56)


@pytest.fixture(scope="module")
def model() -> sl.Model:
    return sl.load(small_network(), mean=(0.5,) * 3, std=(0.25,) * 3, size=32)


@pytest.fixture
def builder(model: sl.Model) -> StyleLossBuilder:
    content = smooth(1, 60, 1)[..., :44, :]
    styles = [smooth(1, 64, 2)[..., :48], smooth(1, 50, 3)[..., :36, :]]
    return StyleLossBuilder(model, content, styles, LAYERS, STYLE_PRESETS["relative"], [1.0, 3.0])


def compute_gram(model: sl.Model, image: Tensor, layer: str) -> Tensor:
    rows = model.features(image, layer)[layer][0].flatten(1)
    return rows @ rows.T / rows.shape[1]


def test_a_style_has_as_many_pixels_as_the_image_times_the_squared_scale(
    builder: StyleLossBuilder,
) -> None:
    style = builder.styles[0]
    height, width = builder.measure_style_size(style, SIZE)
    assert height / width == pytest.approx(64 / 48, rel=0.03)
    assert height * width == pytest.approx(40 * 56, rel=0.03)
    large_strokes = replace(builder, style_scale=2.0)
    assert large_strokes.measure_style_size(style, SIZE) == (
        pytest.approx(2 * height, abs=1),
        pytest.approx(2 * width, abs=1),
    )
    assert builder.fit_style(style, SIZE).shape == (1, 3, height, width)


def test_a_style_needs_two_positions_in_its_deepest_layer(builder: StyleLossBuilder) -> None:
    """relu3 has a stride of 4, so the least of 16 pixels counts; a stride of 16 needs 32."""
    assert builder.find_min_style_side() == 16
    deep_network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=16, padding=1))
    deep = replace(
        builder, model=sl.load(deep_network, size=64), layers=PerceptualLayers((), ("0",))
    )
    assert deep.find_min_style_side() == 32

    assert builder.measure_style_size(builder.styles[1], (16, 16)) == (14, 19)
    assert not builder.has_large_enough_styles((16, 16))
    sizes = [builder.measure_style_size(style, (18, 20)) for style in builder.styles]
    assert sizes == [(22, 16), (16, 22)]
    assert builder.has_large_enough_styles((18, 20))
    with pytest.raises(sl.SightlineError, match="the style would be 14×19 pixels"):
        builder.fit_style(builder.styles[1], (16, 16))


def test_content_terms_are_relative_to_their_features(builder: StyleLossBuilder) -> None:
    targets = builder.get_loss(SIZE).content_targets
    assert builder.content is not None
    content = resize_bicubic(builder.content, SIZE)
    for name in ("relu2", "relu3"):
        features = builder.model.features(content, name)[name]
        weight, target = targets[name]
        torch.testing.assert_close(target, features)
        assert weight == pytest.approx(1.0 / 2 / float(features.square().mean()))


def test_content_terms_of_other_presets_are_not(builder: StyleLossBuilder) -> None:
    absolute = replace(builder, preset=replace(STYLE_PRESETS["gatys"], content=5.0))
    targets = absolute.get_loss(SIZE).content_targets
    assert [weight for weight, _ in targets.values()] == [2.5, 2.5]
    for preset_or_content in (
        {"preset": replace(STYLE_PRESETS["gatys"], content=0.0)},
        {"content": None},
    ):
        changed = replace(builder, **preset_or_content, loss_cache={})
        assert changed.get_loss(SIZE).content_targets == {}


@pytest.mark.parametrize("kind", ["gram", "w2"])
def test_style_terms_are_relative_to_the_first_styles_energy(
    kind: Any, builder: StyleLossBuilder
) -> None:
    preset = StylePreset(1.0, 30.0, 0, kind, relative=True)
    weights = replace(builder, preset=preset).get_loss(SIZE).style_weights
    style = builder.fit_style(builder.styles[0], SIZE)
    layer_weights = preset.compute_layer_weights([8, 16])
    for name, layer_weight in zip(("relu1", "relu3"), layer_weights, strict=True):
        gram = compute_gram(builder.model, style, name)
        energy = gram.square().mean() / 4 if kind == "gram" else gram.diagonal().mean()
        assert weights[name] == pytest.approx(layer_weight / float(energy), rel=1e-4)


def test_styles_are_mixed_by_their_shares(builder: StyleLossBuilder) -> None:
    (region,) = builder.get_loss(SIZE).regions
    assert region.share == 1
    assert region.weights is None
    for name in LAYERS.style:
        grams = [
            compute_gram(builder.model, builder.fit_style(style, SIZE), name)
            for style in builder.styles
        ]
        expected = 0.25 * grams[0] + 0.75 * grams[1]
        torch.testing.assert_close(region.targets[name].gram[0], expected, rtol=1e-4, atol=1e-6)


def test_masks_give_each_style_a_region_by_its_area(builder: StyleLossBuilder) -> None:
    mask = torch.zeros(1, 1, *SIZE)
    mask[..., :10, :28] = 1
    masked = replace(builder, masks=[mask, 1 - mask], loss_cache={})
    regions = masked.get_loss(SIZE).regions
    assert [region.share for region in regions] == pytest.approx([1 / 8, 7 / 8])
    weights = regions[0].weights
    assert weights is not None
    assert weights["relu1"].shape == (1, *SIZE)
    assert float(weights["relu1"].sum()) == pytest.approx(1)
    assert float(weights["relu1"][0, :10, :28].sum()) == pytest.approx(1)
    for region, style in zip(regions, builder.styles, strict=True):
        gram = compute_gram(builder.model, builder.fit_style(style, SIZE), "relu3")
        torch.testing.assert_close(region.targets["relu3"].gram[0], gram, rtol=1e-4, atol=1e-6)


def test_total_variation_is_subtracted(builder: StyleLossBuilder) -> None:
    """The mean over pixels of the squared differences to the right and below, over channels."""
    image = smooth(1, 56, 7)[..., :40, :]
    with_tv = replace(builder, preset=replace(builder.preset, tv=300.0), loss_cache={})
    score, score_with_tv = (
        float(variant.build_objective(SIZE).bind(builder.model)(image, {}))
        for variant in (replace(builder, loss_cache={}), with_tv)
    )
    down = (image[..., 1:, :] - image[..., :-1, :]).square().sum()
    across = (image[..., 1:] - image[..., :-1]).square().sum()
    total_variation = float(down + across) / (40 * 56)
    assert score - score_with_tv == pytest.approx(300 * total_variation, rel=1e-3)


def test_the_last_loss_is_cached(builder: StyleLossBuilder) -> None:
    first = builder.get_loss(SIZE)
    assert builder.get_loss(SIZE) is first
    builder.get_loss((44, 60))
    assert list(builder.loss_cache) == [(44, 60)]


def test_pairs_are_as_many_as_memory_allows(builder: StyleLossBuilder) -> None:
    """20 beside narrow layers, 10 beside wide ones and at the whole memory."""
    assert builder.choose_pair_count((64, 80)) == 20
    assert builder.choose_pair_count((4000, 4000)) == 10
    wide_model = sl.load(nn.Sequential(nn.Conv2d(3, 1000, 3)), size=32)
    wide = replace(builder, model=wide_model, layers=PerceptualLayers((), ("0",)))
    assert wide.choose_pair_count((64, 80)) == 10
    assert replace(builder, history_size=2).choose_pair_count((64, 80)) == 2
