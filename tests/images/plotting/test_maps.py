"""Where zero lies on each scale, how pictures are arranged, and that nothing is not-a-number."""

import math
from collections.abc import Callable

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sightline.images.plotting import maps as plotting


def table(name: str) -> Tensor:
    return torch.tensor(matplotlib.colormaps[name](range(256))[:, :3], dtype=torch.float32)


def maps(count: int = 2, height: int = 5, width: int = 7, seed: int = 0) -> Tensor:
    return torch.randn(count, height, width, generator=torch.Generator().manual_seed(seed))


def pictures(count: int, height: int, width: int) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(3))


def test_the_shipped_colormaps_are_those_of_matplotlib() -> None:
    with np.load(plotting.COLORMAP_FILE) as tables:
        assert set(tables) == {"RdBu_r", "inferno", "viridis"}
        for name, values in tables.items():
            assert torch.equal(torch.from_numpy(values), table(name))
    levels = torch.arange(256).view(1, 16, 16) / 255
    for name in ("RdBu_r", "viridis", "magma"):  # the last one is not shipped
        colors = plotting.apply_colormap(levels, name)
        assert torch.equal(colors[0].flatten(1).T, table(name))


def find_levels(colors: Tensor, name: str) -> Tensor:
    """The index of each pixel's color in a colormap of 256 different colors: N×H×W."""
    return (colors.permute(0, 2, 3, 1)[..., None, :] - table(name)).abs().sum(-1).argmin(-1)


# ── scales ──


def test_heat_is_black_at_zero_and_brightest_at_the_limit() -> None:
    values = torch.tensor([[[0.0, 1.0, 2.0, 4.0]], [[0.0, 10.0, 5.0, 2.5]]])
    pictures = plotting.render_heatmap(values)
    assert pictures.shape == (2, 3, 1, 4)
    assert torch.equal(pictures[0, :, 0, 0], table("inferno")[0])
    assert pictures[0, :, 0, 0].max() < 0.05
    assert torch.equal(pictures[0, :, 0, 3], table("inferno")[255])
    assert torch.equal(pictures[1, :, 0, 1], table("inferno")[255]), "each map has its own scale"
    common = plotting.render_heatmap(values, 10.0)
    assert find_levels(common, "inferno")[:, 0].tolist() == [[0, 26, 51, 102], [0, 255, 128, 64]]
    own_limits = plotting.render_heatmap(values, torch.tensor([8.0, 20.0]))
    assert find_levels(own_limits, "inferno")[:, 0].tolist() == [[0, 32, 64, 128], [0, 128, 64, 32]]
    assert torch.equal(plotting.render_heatmap(values, 2.0)[0, :, 0, 3], table("inferno")[255]), (
        "over the limit it stays brightest"
    )


def test_signed_is_white_at_zero_red_above_and_blue_below() -> None:
    values = torch.tensor([[[0.0, 2.0, -2.0, 1.0, -1.0]]])
    colors = plotting.render_signed_map(values)[0, :, 0].T
    zero, highest, lowest, positive, negative = colors
    assert zero.min() > 0.95
    assert highest[0] > highest[2] + 0.2
    assert lowest[2] > lowest[0] + 0.2
    assert torch.equal(highest, table("RdBu_r")[255])
    assert torch.equal(lowest, table("RdBu_r")[0])
    assert positive[0] > positive[2]
    assert negative[2] > negative[0]


@pytest.mark.parametrize("limit", [None, 0.7, 5.0])
def test_signed_has_one_scale_both_ways(limit: float | None) -> None:
    above, below = (
        find_levels(plotting.render_signed_map(sign * maps(), limit), "RdBu_r") for sign in (1, -1)
    )
    assert ((above + below) - 255).abs().max() <= 1
    top = maps().abs().flatten(1).amax(1).view(-1, 1, 1) if limit is None else limit
    expected = ((0.5 + 0.5 * maps() / top).clamp(0, 1) * 255).round()
    assert (above - expected).abs().max() <= 1


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0])
def test_a_constant_map_is_not_nan(value: float) -> None:
    values = torch.full((2, 4, 5), value)
    for picture in (
        plotting.render_heatmap(values),
        plotting.render_signed_map(values),
        plotting.overlay_heatmap(pictures(2, 4, 5), values),
        plotting.overlay_signed_map(pictures(2, 4, 5), values),
    ):
        assert picture.shape == (2, 3, 4, 5)
        assert torch.isfinite(picture).all()
        assert 0 <= picture.min() <= picture.max() <= 1
    if value == 0:
        assert torch.equal(
            plotting.render_heatmap(values),
            table("inferno")[0].view(1, 3, 1, 1).expand(2, -1, 4, 5),
        )
        assert plotting.render_signed_map(values).min() > 0.95


def test_nan_is_shown_as_zero_and_leaves_the_scale() -> None:
    values = maps(1)
    hole, zero = values.clone(), values.clone()
    hole[0, 2, 3], zero[0, 2, 3] = float("nan"), 0.0
    for draw in (
        plotting.render_heatmap,
        plotting.render_signed_map,
        lambda v: plotting.overlay_heatmap(pictures(1, 5, 7), v),
        lambda v: plotting.overlay_signed_map(pictures(1, 5, 7), v),
    ):
        assert torch.equal(draw(hole), draw(zero))
    colors = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    broken, gray = colors.clone(), colors.clone()
    broken[0, 1, 2, 2], gray[0, 1, 2, 2] = float("nan"), 0.0
    assert torch.equal(plotting.render_around_gray(broken), plotting.render_around_gray(gray))


def test_around_gray_is_linear_and_common_to_all() -> None:
    values = torch.randn(3, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    top = float(values.abs().max())
    assert torch.allclose(plotting.render_around_gray(values), 0.5 + 0.5 * values / top, atol=1e-6)
    assert torch.allclose(
        plotting.render_around_gray(values, 0.5), (0.5 + values).clamp(0, 1), atol=1e-6
    )
    assert torch.equal(
        plotting.render_around_gray(torch.zeros(1, 3, 2, 2)), torch.full((1, 3, 2, 2), 0.5)
    )


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99, 1.0])
def test_a_share_of_the_values_does_not_exceed_the_quantile(share: float) -> None:
    values = torch.rand(3, 50, generator=torch.Generator().manual_seed(0))
    quantiles = plotting.compute_quantile(values, share)
    for row, limit in zip(values.tolist(), quantiles.tolist(), strict=True):
        assert limit == sorted(row)[max(round(50 * share), 1) - 1]


def test_over_leaves_the_image_where_there_is_nothing() -> None:
    image = pictures(1, 6, 8)
    values = torch.zeros(1, 6, 8)
    values[0, :, 4:] = 1
    overlay = plotting.overlay_heatmap(image, values)
    uncovered, covered = overlay.split(4, dim=3)
    gray = image.mean(1)[..., :4]
    order = uncovered[:, 0].flatten().argsort()
    assert torch.equal(order, gray.flatten().argsort()), "dimmed, but the same picture"
    assert (uncovered.amax(1) - uncovered.amin(1)).max() < 1e-6
    assert (covered.amax(1) - covered.amin(1)).min() > 0.1
    assert torch.equal(image, pictures(1, 6, 8))


def test_an_overlay_has_the_colors_of_its_map_and_its_magnitude_as_opacity() -> None:
    image = pictures(2, 5, 7)
    dimmed = image.mean(1, keepdim=True) * 0.65 + 0.1
    values = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(4))
    limit = torch.tensor([0.8, 1.7])
    opacity = (values.abs() / limit.view(2, 1, 1)).clamp(0, 1)[:, None]
    colors = plotting.render_signed_map(values, limit)
    expected = dimmed * (1 - opacity) + colors * opacity
    assert torch.allclose(plotting.overlay_signed_map(image, values, limit), expected, atol=1e-6)

    positive_opacity = (values / limit.view(2, 1, 1)).clamp(0, 1)[:, None]
    colors = plotting.render_heatmap(values, limit)
    expected = dimmed * (1 - positive_opacity) + colors * positive_opacity
    assert torch.allclose(plotting.overlay_heatmap(image, values, limit), expected, atol=1e-6)


def test_evidence_against_is_blue_in_the_overlay() -> None:
    values = torch.zeros(1, 4, 6)
    values[0, 1, 2] = -2.0
    values[0, 3, 4] = 2.0
    overlay = plotting.overlay_signed_map(torch.full((1, 3, 4, 6), 0.5), values)[0]
    assert overlay[2, 1, 2] > overlay[0, 1, 2] + 0.2
    assert overlay[0, 3, 4] > overlay[2, 3, 4] + 0.2


def test_maps_are_enlarged_smoothly_and_pixels_by_whole_factors() -> None:
    values = maps()
    assert torch.equal(plotting.upsample_maps(values, (5, 7)), values)
    assert plotting.upsample_maps(values, (20, 21)).shape == (2, 20, 21)
    assert torch.allclose(
        plotting.upsample_maps(torch.full((1, 2, 2), 3.0), (7, 9)), torch.full((1, 7, 9), 3.0)
    )
    image = pictures(2, 5, 7)
    for min_side, factor in ((1, 1), (5, 1), (6, 2), (11, 3), (50, 10)):
        large = plotting.enlarge_pixels(image, min_side)
        assert large.shape == (2, 3, 5 * factor, 7 * factor)
        assert torch.equal(large[:, :, ::factor, ::factor], image)
        assert torch.equal(large[:, :, factor - 1 :: factor, factor - 1 :: factor], image)


# ── sheets ──


@pytest.mark.parametrize("count", range(1, 21))
@pytest.mark.parametrize("columns", [None, 1, 3, 30])
def test_a_sheet_holds_every_picture_once(count: int, columns: int | None) -> None:
    image = 0.2 + 0.5 * pictures(count, 4, 6)
    sheet = plotting.make_contact_sheet(image, columns, gap=2)
    column_count = min(count, columns or math.ceil(math.sqrt(count * 4 / 6)))
    row_count = math.ceil(count / column_count)
    expected_size = (4 * row_count + 2 * (row_count - 1), 6 * column_count + 2 * (column_count - 1))
    assert sheet.shape == (1, 3, *expected_size)
    background = sheet.clone()
    for i in range(count):
        y = (i // column_count) * 6
        x = (i % column_count) * 8
        assert torch.equal(sheet[0, :, y : y + 4, x : x + 6], image[i])
        background[0, :, y : y + 4, x : x + 6] = 1
    assert torch.equal(background, torch.ones_like(background)), "white between them"


@given(st.integers(1, 20), st.integers(1, 9), st.integers(1, 9), st.integers(0, 5))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_sheets_are_about_square(count: int, height: int, width: int, gap: int) -> None:
    sheet = plotting.make_contact_sheet(pictures(count, height, width), gap=gap, fill=0.0)
    columns = (sheet.shape[3] + gap) // (width + gap)
    rows = (sheet.shape[2] + gap) // (height + gap)
    assert columns * rows >= count > columns * (rows - 1)
    if count >= 9:
        assert 1 / 4 < columns * width / (rows * height) < 4 or 1 in (columns, rows)


# ── rows ──


def test_pictures_beside_one_another_are_as_high_as_the_highest() -> None:
    low, high = pictures(1, 6, 10), pictures(1, 12, 9)
    row = plotting.arrange_in_row(low, high, gap=5)
    assert row.shape == (1, 3, 12, 20 + 5 + 9)
    assert torch.equal(row[..., 25:], high)
    assert torch.equal(row[..., 20:25], torch.ones(1, 3, 12, 5))
    assert abs(float(row[..., :20].mean() - low.mean())) < 0.02
    assert torch.equal(plotting.arrange_in_row(low, gap=5), low)


def test_a_batch_beside_another_becomes_rows() -> None:
    left, right = pictures(3, 4, 5), pictures(3, 8, 3)
    row = plotting.arrange_in_row(left, right, gap=2)
    assert row.shape == (1, 3, 3 * 8 + 2 * 2, 10 + 2 + 3)
    for i in range(3):
        assert torch.equal(row[0, :, 10 * i : 10 * i + 8, 12:], right[i])


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_beside_takes_any_sizes(sizes: list[tuple[int, int]]) -> None:
    row = plotting.arrange_in_row(*(pictures(1, *size) for size in sizes), gap=1)
    height = max(h for h, _ in sizes)
    assert row.shape == (
        1,
        3,
        height,
        sum(round(w * height / h) for h, w in sizes) + len(sizes) - 1,
    )
    assert 0 <= row.min() <= row.max() <= 1


# ── outlines ──


@given(st.integers(1, 12), st.integers(1, 12), st.data(), st.integers(1, 4))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_an_outline_stays_inside_its_box_and_the_image_as_it_is(
    height: int, width: int, data: st.DataObject, thick: int
) -> None:
    top = data.draw(st.integers(0, height - 1))
    left = data.draw(st.integers(0, width - 1))
    bottom = data.draw(st.integers(top + 1, height))
    right = data.draw(st.integers(left + 1, width))
    image = 0.3 * pictures(1, height, width)
    original = image.clone()
    outlined = plotting.draw_box_outline(image, (top, left, bottom, right), width=thick)
    assert torch.equal(image, original)
    for y in range(height):
        for x in range(width):
            inside = top <= y < bottom and left <= x < right
            rim = inside and min(y - top, bottom - 1 - y, x - left, right - 1 - x) < thick
            expected = torch.tensor([1.0, 0.85, 0.0]) if rim else image[0, :, y, x]
            assert torch.equal(outlined[0, :, y, x], expected), (y, x)


def test_a_box_beyond_the_image_is_cut() -> None:
    image = 0.3 * pictures(2, 8, 9)
    assert torch.equal(
        plotting.draw_box_outline(image, (-4, -3, 5, 6)),
        plotting.draw_box_outline(image, (0, 0, 5, 6)),
    )
    assert torch.equal(
        plotting.draw_box_outline(image, (3, 2, 50, 60)),
        plotting.draw_box_outline(image, (3, 2, 8, 9)),
    )


# ── limits and heatmaps in a row ──


def test_the_limit_of_a_heatmap_is_its_percentile_or_its_maximum() -> None:
    values = torch.arange(1.0, 201.0)[
        torch.randperm(200, generator=torch.Generator().manual_seed(0))
    ]
    assert plotting.find_heatmap_limit(values.view(10, 20)) == 198
    sparse = torch.zeros(10, 20)
    sparse[3, 4] = 5
    assert plotting.find_heatmap_limit(sparse) == 5


def test_the_limit_of_a_gradient_leaves_zeros_out() -> None:
    gradient = torch.zeros(3, 40, 50)
    gradient[0, :10, :20] = torch.arange(1.0, 201.0).view(10, 20)
    gradient[1, :10, :20] = -torch.arange(201.0, 401.0).view(10, 20)
    assert plotting.find_gradient_limit(gradient) == 398
    assert plotting.find_gradient_limit(torch.zeros(3, 4, 5)) == 1.0


@pytest.mark.parametrize("is_signed", [False, True])
def test_heatmaps_stand_beside_their_image_each_on_its_own_scale(is_signed: bool) -> None:
    image = pictures(1, 12, 15)
    heatmaps = [maps(1, 12, 15, seed)[0].abs() * scale for seed, scale in ((0, 1.0), (1, 100.0))]
    if is_signed:
        heatmaps[0] = -heatmaps[0]
    row = plotting.draw_heatmap_row(image, heatmaps)
    assert row.shape == (1, 3, 12, 3 * 15 + 2 * 4)
    assert torch.equal(row[..., :15], image)
    render = plotting.render_signed_map if is_signed else plotting.render_heatmap
    for number, heatmap in enumerate(heatmaps):
        left = (number + 1) * 19
        limit = sorted(heatmap.abs().flatten().tolist())[round(0.99 * 180) - 1]
        expected = render(heatmap[None], limit)
        assert torch.equal(row[..., left : left + 15], expected)


def test_titles_stand_above_their_pictures() -> None:
    low, high = pictures(1, 30, 80), pictures(1, 60, 90)
    titled = plotting.arrange_with_titles(["a", "b"], [low, high], gap=10)
    row = plotting.arrange_in_row(low, high, gap=10)
    title_height = titled.shape[2] - row.shape[2]
    assert titled.shape[3] == row.shape[3] == 160 + 10 + 90
    assert torch.equal(titled[:, :, title_height:], row)
    dark_columns = (titled[0, :, :title_height].amin((0, 1)) < 0.5).nonzero().flatten()
    for center in (80, 170 + 45):
        assert ((dark_columns - center).abs() <= 5).any()
    assert all(min(abs(column - 80), abs(column - 215)) <= 6 for column in dark_columns.tolist())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("overlay", [plotting.overlay_heatmap, plotting.overlay_signed_map])
def test_maps_of_any_precision_are_laid_over(
    overlay: Callable[..., Tensor], dtype: torch.dtype
) -> None:
    image = pictures(2, 4, 6)
    values = torch.rand(2, 2, 3, generator=torch.Generator().manual_seed(4))
    picture = overlay(image, values.to(dtype))
    assert picture.dtype == torch.float32
    torch.testing.assert_close(picture, overlay(image, values), atol=2e-2, rtol=0)
