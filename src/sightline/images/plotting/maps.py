"""Heatmaps, overlays, contact sheets and outlines: numbers as pictures N×3×H×W in [0, 1].

Nothing here stretches contrast on its own: a caller that scales says so in its caption, so that
noise looks like noise.
"""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.images.io.library import ASSETS_FOLDER
from sightline.images.plotting.charts import TEXT_COLOR, rasterize_figure
from sightline.images.transforms import resize_image

# Written by training/write_colormaps.py.
COLORMAP_FILE = ASSETS_FOLDER / "colormaps.npz"

MID_GRAY = 0.5

# The scale of a heatmap ends at this quantile of its values, so that a few large ones do not hide
# all others. The structural similarity of two heatmaps compares them on this scale too.
BRIGHTEST_QUANTILE = 0.99
# The same for gradients: most of an image lies outside of what a neuron depends on.
GRADIENT_QUANTILE = 0.995


# ── scales ──


def compute_quantile(values: Tensor, fraction: float) -> Tensor:
    """The lowest value along the last axis that a `fraction` of the values do not exceed.

    Unlike `torch.quantile` it does not sort or interpolate, and takes tensors of any size.
    """
    at_least_float32 = torch.promote_types(values.dtype, torch.float32)
    numbers = values.detach().cpu().to(at_least_float32).numpy()
    rank = max(1, round(fraction * values.shape[-1])) - 1
    # Many times faster than torch.kthvalue.
    partitioned = np.partition(numbers, rank, axis=-1)
    return torch.as_tensor(partitioned[..., rank]).to(values)


def find_heatmap_limit(magnitude: Tensor) -> Tensor:
    """Where the scale of a nonnegative map ends: its 99th percentile, or else its maximum."""
    limit = compute_quantile(magnitude.flatten(), BRIGHTEST_QUANTILE)
    return limit if limit > 0 else magnitude.max()


def find_gradient_limit(gradient: Tensor) -> float:
    """Where the scale of a gradient ends: the 99.5th percentile of its nonzero magnitudes."""
    magnitude = gradient.abs().flatten()
    magnitude = magnitude[magnitude > 0]
    return float(compute_quantile(magnitude, GRADIENT_QUANTILE)) if len(magnitude) else 1.0


# ── colors ──


def apply_colormap(values: Tensor, colormap: str) -> Tensor:
    """Colors of values in [0, 1]: N×H×W to N×3×H×W, on the CPU."""
    levels = values.detach().cpu().clamp(0, 1).mul_(255).round_().int()
    colors = F.embedding(levels, _load_colormap(colormap))
    return colors.permute(0, 3, 1, 2)


def render_heatmap(
    values: Tensor, limit: Tensor | float | None = None, colormap: str = "inferno"
) -> Tensor:
    """Nonnegative maps N×H×W as pictures, darkest at 0 and brightest at `limit`.

    Without a limit each map has its own scale, up to its maximum. NaN is shown as 0.
    """
    values = values.nan_to_num(0)
    scale = _compute_scale(values, limit)
    return apply_colormap(values / scale, colormap)


def render_signed_map(
    values: Tensor, limit: Tensor | float | None = None, colormap: str = "RdBu_r"
) -> Tensor:
    """Signed maps N×H×W as pictures: white at 0, red positive, blue negative, up to ±`limit`.

    Without a limit each map has its own scale, up to its largest magnitude. NaN is shown as 0.
    """
    values = values.nan_to_num(0)
    scale = _compute_scale(values.abs(), limit)
    return apply_colormap(0.5 + 0.5 * values / scale, colormap)


def render_around_gray(values: Tensor, limit: float | None = None) -> Tensor:
    """Signed colors N×3×H×W with gray at 0 and one scale for all, up to ±`limit`.

    Without a limit the scale ends at the largest magnitude. NaN is shown as 0.
    """
    values = values.detach().cpu().nan_to_num(0)
    if limit is None:
        limit = float(values.abs().max())
    scale = limit or 1
    return (MID_GRAY + MID_GRAY * values / scale).clamp(0, 1)


def overlay_heatmap(
    image: Tensor, values: Tensor, limit: Tensor | float | None = None, colormap: str = "inferno"
) -> Tensor:
    """Nonnegative maps N×h×w laid over their images in gray, in the colors of `render_heatmap`.

    The opacity is the value as a share of the limit; where a map is 0 the image is only dimmed.
    """
    values = values.nan_to_num(0)
    enlarged = upsample_maps(values, image.shape[-2:])
    scale = _compute_scale(values, limit)
    colors = render_heatmap(enlarged, scale.flatten(), colormap)
    return _lay_over(image, colors, enlarged / scale)


def overlay_signed_map(
    image: Tensor, values: Tensor, limit: Tensor | float | None = None, colormap: str = "RdBu_r"
) -> Tensor:
    """Signed maps N×h×w laid over their images in gray, in the colors of `render_signed_map`.

    The opacity is the magnitude as a share of the limit; where a map is 0 the image is only dimmed.
    """
    values = values.nan_to_num(0)
    enlarged = upsample_maps(values, image.shape[-2:])
    scale = _compute_scale(values.abs(), limit)
    colors = render_signed_map(enlarged, scale.flatten(), colormap)
    return _lay_over(image, colors, enlarged.abs() / scale)


def _lay_over(image: Tensor, colors: Tensor, opacity: Tensor) -> Tensor:
    """Colors N×3×H×W over dimmed gray images, each pixel as opaque as `opacity` N×H×W says."""
    gray = image.detach().cpu().mean(1, keepdim=True)
    dimmed = gray * 0.65 + 0.1
    # Maps of networks in double or half precision are drawn in the precision of pictures.
    weight = opacity.detach().cpu().clamp(0, 1).unsqueeze(1).to(colors)
    return torch.lerp(dimmed.expand_as(colors), colors, weight).clamp_(0, 1)


@cache
def _load_colormap(name: str) -> Tensor:
    """A colormap of matplotlib as a 256×3 table.

    Those in `COLORMAP_FILE` are read from there: to import matplotlib takes a tenth of a second,
    which the first picture would wait for.
    """
    with np.load(COLORMAP_FILE) as tables:
        if name in tables:
            return torch.from_numpy(tables[name])
    return read_matplotlib_colormap(name)


def read_matplotlib_colormap(name: str) -> Tensor:
    """A colormap of matplotlib as a 256×3 table."""
    import matplotlib

    return torch.tensor(matplotlib.colormaps[name](range(256))[:, :3], dtype=torch.float32)


def _compute_scale(values: Tensor, limit: Tensor | float | None) -> Tensor:
    """What maps are divided by, N×1×1: `limit` or each map's maximum, and 1 for an empty map."""
    if limit is None:
        scale = values.flatten(1).amax(1)
    else:
        scale = torch.as_tensor(limit, device=values.device).expand(len(values))
    return torch.where(scale > 0, scale, torch.ones_like(scale)).view(-1, 1, 1)


# ── size ──


def upsample_maps(values: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Maps N×h×w, with values of any range, enlarged to H×W pixels (bilinear)."""
    if values.shape[-2:] == tuple(size):
        return values
    enlarged = F.interpolate(
        values.unsqueeze(1), size=tuple(size), mode="bilinear", align_corners=False
    )
    return enlarged.squeeze(1)


def enlarge_pixels(image: Tensor, min_side: int) -> Tensor:
    """Repeats pixels by a whole factor until the shorter side has at least `min_side`."""
    short_side = min(image.shape[-2:])
    factor = max(1, math.ceil(min_side / short_side))
    rows_repeated = image.repeat_interleave(factor, 2)
    return rows_repeated.repeat_interleave(factor, 3)


# ── arrangement ──


def make_contact_sheet(
    pictures: Tensor, columns: int | None = None, gap: int = 2, fill: float = 1.0
) -> Tensor:
    """N pictures of one size as one picture, row by row, `gap` pixels apart: 1×3×H×W.

    Without `columns` the sheet is about square.
    """
    count, _, height, width = pictures.shape
    if not columns:
        columns = math.ceil(math.sqrt(count * height / width))
    columns = min(count, columns)
    rows = math.ceil(count / columns)
    sheet_height = rows * (height + gap) - gap
    sheet_width = columns * (width + gap) - gap
    canvas = torch.full((1, 3, sheet_height, sheet_width), fill)
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        top = row * (height + gap)
        left = column * (width + gap)
        canvas[0, :, top : top + height, left : left + width] = picture
    return canvas


def arrange_in_row(*pictures: Tensor, gap: int = 6, fill: float = 1.0) -> Tensor:
    """Pictures N×3×h×w of any size in a row, all as high as the highest: 1×3×H×W.

    Batches become rows; all must have the same N.
    """
    height = max(picture.shape[2] for picture in pictures)
    widths = _scale_widths(pictures, height)
    scaled = [
        resize_image(picture.detach().cpu(), height, width)
        for picture, width in zip(pictures, widths, strict=True)
    ]
    row_count = len(pictures[0])
    total_height = row_count * (height + gap) - gap
    total_width = sum(widths) + gap * (len(widths) - 1)
    canvas = torch.full((1, 3, total_height, total_width), fill)
    for row in range(row_count):
        top = row * (height + gap)
        left = 0
        for batch, width in zip(scaled, widths, strict=True):
            canvas[0, :, top : top + height, left : left + width] = batch[row]
            left += width + gap
    return canvas


def arrange_with_titles(titles: Sequence[str], pictures: Sequence[Tensor], gap: int = 6) -> Tensor:
    """`arrange_in_row` with a title above each picture: 1×3×H×W."""
    from matplotlib.figure import Figure

    row = arrange_in_row(*pictures, gap=gap)
    total_width = row.shape[3]
    widths = _scale_widths(pictures, max(picture.shape[2] for picture in pictures))
    figure = Figure(figsize=(total_width / 100, 0.22), dpi=100)
    left = 0
    for title, width in zip(titles, widths, strict=True):
        figure.text(
            (left + width / 2) / total_width,
            0.5,
            title,
            ha="center",
            va="center",
            fontsize=min(10, 1.3 * width / max(1, len(title))),
            color=TEXT_COLOR,
        )
        left += width + gap
    return torch.cat([rasterize_figure(figure)[..., :total_width], row], 2)


def draw_heatmap_row(image: Tensor, heatmaps: list[Tensor]) -> Tensor:
    """An image 1×3×H×W and maps H×W side by side, as `render_heatmaps` draws them."""
    pictures = torch.cat([image.cpu(), render_heatmaps(heatmaps)])
    return make_contact_sheet(pictures, columns=len(pictures), gap=4)


def render_heatmaps(heatmaps: list[Tensor]) -> Tensor:
    """N maps H×W as pictures N×3×H×W, each up to its 99th percentile.

    If any map has negative values, all are drawn as signed maps.
    """
    stack = torch.stack(heatmaps)
    limits = torch.stack([find_heatmap_limit(heatmap.abs()) for heatmap in heatmaps])
    render = render_signed_map if bool((stack < 0).any()) else render_heatmap
    return render(stack, limits)


def draw_box_outline(
    image: Tensor,
    box: tuple[int, int, int, int],
    color: tuple[float, float, float] = (1.0, 0.85, 0.0),
    width: int = 2,
) -> Tensor:
    """A copy of the image with a rectangle drawn inside the box, `width` pixels thick.

    `box` is top, left, bottom, right with exclusive ends, cut to the image.
    """
    picture = image.detach().cpu().clone()
    top = max(0, box[0])
    left = max(0, box[1])
    bottom = min(box[2], picture.shape[2])
    right = min(box[3], picture.shape[3])
    inside = (..., slice(top + width, bottom - width), slice(left + width, right - width))
    content = picture[inside].clone()
    picture[..., top:bottom, left:right] = torch.tensor(color).view(1, 3, 1, 1)
    picture[inside] = content
    return picture


def _scale_widths(pictures: Sequence[Tensor], height: int) -> list[int]:
    """The widths of pictures that are resized to a height."""
    return [round(picture.shape[3] * height / picture.shape[2]) for picture in pictures]
