"""Charts of attacks: accuracy over the radius, a histogram of lengths, a matrix of shares, a map of answers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import render

COLORS = "tab10"


def histogram(lengths: Sequence[float], axis: str) -> Tensor:
    """How many images need a change of which length: 1×3×360×480."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 3.6), dpi=100, layout="constrained")
    plot = figure.subplots()
    plot.hist(lengths, bins=min(30, max(5, len(lengths) // 4)), color="#f2b134")
    plot.axvline(float(torch.tensor(lengths).median()), color="#222222", linewidth=1, label="median")
    plot.set(xlabel=axis, ylabel="images", xlim=(0, None))
    plot.spines[["top", "right"]].set_visible(False)
    plot.legend(frameon=False, fontsize=9)
    return render.drawn(figure)


def matrix(shares: Tensor, names: Sequence[str], rows: str, columns: str) -> Tensor:
    """Shares in [0, 1] as a square table, their numbers inside: 1×3×H×H."""
    from matplotlib.figure import Figure

    side = 2.6 + 0.9 * len(names)
    figure = Figure(figsize=(side, side), dpi=100, layout="constrained")
    plot = figure.subplots()
    plot.imshow(shares.numpy(), cmap="YlOrBr", vmin=0, vmax=1)
    for row, values in enumerate(shares.tolist()):
        for column, value in enumerate(values):
            plot.text(column, row, f"{value:.0%}", ha="center", va="center", color="white" if value > 0.6 else "#222222")
    places = range(len(names))
    plot.set_xticks(places, names, rotation=20, ha="right")
    plot.set_yticks(places, names)
    plot.set(xlabel=columns, ylabel=rows)
    return render.drawn(figure)


def regions(
    answers: Tensor, names: Sequence[str], span: tuple[float, float], marks: Sequence[tuple[str, float, float]], axes: tuple[str, str]
) -> Tensor:
    """A map of answers, rows×columns of class indices, over ±`span` both ways, one colour a class, with named points: 1×3×420×W."""
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    seen, counts = answers.unique(return_counts=True)
    seen = seen[counts.argsort(descending=True, stable=True)]
    palette = render.colors(COLORS)[torch.linspace(0, 255, 10).long()].tolist()
    colors = [palette[place % len(palette)] for place in range(len(seen))]
    order = torch.zeros(int(seen.max()) + 1, dtype=torch.long)
    order[seen] = torch.arange(len(seen))
    figure = Figure(figsize=(6.6, 4.2), dpi=100, layout="constrained")
    plot = figure.subplots()
    plot.imshow(
        order[answers].numpy(), cmap=ListedColormap(colors), vmin=-0.5, vmax=len(seen) - 0.5,
        extent=(-span[0], span[0], -span[1], span[1]), origin="lower", interpolation="nearest", aspect="auto", alpha=0.75,
    )  # fmt: skip
    for name, across, up in marks:
        plot.plot(across, up, marker="o", markersize=6, color="#222222", markeredgecolor="white")
        plot.annotate(name, (across, up), xytext=(6, 6), textcoords="offset points", fontsize=9, color="#222222")
    plot.set(xlabel=axes[0], ylabel=axes[1])
    handles = [Patch(color=color, alpha=0.75, label=names[int(index)]) for color, index in zip(colors, seen[:10], strict=False)]
    plot.legend(handles=handles, fontsize=9, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return render.drawn(figure)
