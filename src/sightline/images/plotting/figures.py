"""Figures as data: what a page draws in its own fonts, colors and widths.

A result has them beside pictures of the same content, for places that show only pictures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from sightline.images.plotting.captioned_rows import FigureRow
from sightline.images.plotting.charts import LinePlot


@dataclass(frozen=True)
class ColorScale:
    """The colors of maps: from 0 to `limit`, or from −`limit` to `limit` for "diverging"."""

    kind: Literal["sequential", "diverging"]
    limit: float


@dataclass(frozen=True)
class PictureRows:
    """Rows of pictures with captions, as `compose_figure_rows` draws them.

    `tile_side` is the side in pixels of the square that each picture is shown in. Where
    `is_pixelated`, pictures are enlarged by repeating their pixels. `scale` is that of all of them.
    """

    rows: Sequence[FigureRow]
    tile_side: int = 96
    is_pixelated: bool = False
    scale: ColorScale | None = None


@dataclass(frozen=True)
class BarChart:
    """Shares in [0, 1] by name."""

    names: Sequence[str]
    shares: Sequence[float]


@dataclass(frozen=True)
class DotPlot:
    """Several measures, shares in [0, 1] each, of the same things.

    `measures` has one share for each name. `references` has shares by a word, such as chance, for
    each measure.
    """

    names: Sequence[str]
    measures: Mapping[str, Sequence[float]]
    references: Mapping[str, Mapping[str, float]] = field(
        default_factory=dict[str, Mapping[str, float]]
    )


@dataclass(frozen=True)
class LineChart:
    """Line plots side by side."""

    plots: Sequence[LinePlot]


@dataclass(frozen=True)
class Histogram:
    """How many images have which value, as `draw_histogram` draws it."""

    values: Sequence[float]
    marks: Sequence[float]
    x_label: str
    shows_median: bool = False
    starts_at_zero: bool = False


@dataclass(frozen=True)
class ImagePair:
    """Two pictures 1×3×H×W of one size, to be compared, and what each is."""

    first: Tensor
    second: Tensor
    first_name: str
    second_name: str


@dataclass(frozen=True)
class Heatmap:
    """An attribution of one image: `values` H×W on a scale up to `limit`, in words `description`.

    A signed one has the scale ±`limit`.
    """

    values: Tensor
    limit: float
    is_signed: bool
    description: str


FigureData = PictureRows | BarChart | DotPlot | LineChart | Histogram | ImagePair | Heatmap
