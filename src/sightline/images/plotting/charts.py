"""Charts of attacks: accuracy over the radius, a histogram of lengths, a matrix of shares, a map of answers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sightline.images.plotting.maps import load_colormap, rasterize_figure


def draw_length_histogram(lengths: Sequence[float], x_label: str) -> Tensor:
    """How many images need a change of which length: 1×3×360×480."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 3.6), dpi=100, layout="constrained")
    plot = figure.subplots()
    plot.hist(lengths, bins=min(30, max(5, len(lengths) // 4)), color="#f2b134")
    plot.axvline(
        float(torch.tensor(lengths).median()), color="#222222", linewidth=1, label="median"
    )
    plot.set(xlabel=x_label, ylabel="images", xlim=(0, None))
    plot.spines[["top", "right"]].set_visible(False)
    plot.legend(frameon=False, fontsize=9)
    return rasterize_figure(figure)


def draw_share_matrix(
    shares: Tensor,
    row_names: Sequence[str],
    column_names: Sequence[str],
    axis_labels: tuple[str, str],
) -> Tensor:
    """Shares in [0, 1] as a table, rows×columns, their numbers inside: 1×3×H×W."""
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(2.6 + 0.9 * len(column_names), 1.6 + 0.7 * len(row_names)),
        dpi=100,
        layout="constrained",
    )
    plot = figure.subplots()
    plot.imshow(shares.numpy(), cmap="YlOrBr", vmin=0, vmax=1, aspect="auto")
    for row, values in enumerate(shares.tolist()):
        for column, value in enumerate(values):
            plot.text(
                column,
                row,
                f"{value:.0%}",
                ha="center",
                va="center",
                color="white" if value > 0.6 else "#222222",
            )
    plot.set_xticks(range(len(column_names)), column_names, rotation=20, ha="right")
    plot.set_yticks(range(len(row_names)), row_names)
    plot.set(ylabel=axis_labels[0], xlabel=axis_labels[1])
    return rasterize_figure(figure)


def draw_decision_regions(
    classes: Tensor,
    names: Sequence[str],
    span: float,
    distance: float,
    axis_labels: tuple[str, str],
) -> Tensor:
    """A map of answers, rows (from below)×columns of class indices over ±`span` both ways, one colour a class; the image in the
    middle and its adversarial `distance` to the right are marked: 1×3×420×660."""
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    seen, counts = classes.unique(return_counts=True)
    seen = seen[counts.argsort(descending=True, stable=True)]
    palette = load_colormap("tab10")[:10].tolist()  # a list of ten, not a scale
    colors = [palette[place % len(palette)] for place in range(len(seen))]
    order = torch.zeros(int(seen.max()) + 1, dtype=torch.long)
    order[seen] = torch.arange(len(seen))
    figure = Figure(figsize=(6.6, 4.2), dpi=100, layout="constrained")
    plot = figure.subplots()
    look: dict[str, Any] = {
        "cmap": ListedColormap(colors),
        "vmin": -0.5,
        "vmax": len(seen) - 0.5,
        "alpha": 0.75,
        "interpolation": "nearest",
    }
    plot.imshow(order[classes].numpy(), extent=(-span, span, -span, span), origin="lower", **look)
    for name, across, side in (("image", 0.0, "right"), ("adversarial", distance, "left")):
        plot.plot(across, 0, marker="o", markersize=6, color="#222222", markeredgecolor="white")
        plot.annotate(
            name,
            (across, 0),
            xytext=(0, 7),
            textcoords="offset points",
            ha=side,
            fontsize=9,
            color="#222222",
        )
    plot.set(xlabel=axis_labels[0], ylabel=axis_labels[1])
    handles = [
        Patch(color=color, alpha=0.75, label=names[int(index)])
        for color, index in zip(colors, seen[:10], strict=False)
    ]
    plot.legend(
        handles=handles, fontsize=9, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0)
    )
    return rasterize_figure(figure)
