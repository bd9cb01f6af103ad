"""Instance norm against batch norm in a style network (Ulyanov 2017): what each makes of a pale photograph, and what training with each came to."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from ... import image as images
from ... import render
from ...catalog import method
from ...knobs import Between
from ...model import Model
from ...networks.apply import restyled
from ...networks.files import Styles, blend, read_styles
from ...result import Result
from .stylize import manners

RECORDED = Path(__file__).parents[2] / "assets" / "instance_norm.json"
COLORS = {"instance": "#a65d00", "batch": "#3b6ea5"}


@method(
    title="Instance norm against batch norm",
    question="Why does a style network normalize every photograph by itself?",
    reading="Left the photograph, below it the same with little contrast. In the middle both painted by the network that comes with Sightline, whose instance "
    "norms take mean and deviation of each picture by itself: the two paintings are nearly one. Right the same network, the same weights, with mean and "
    "deviation over both pictures together, as batch norm has them: the pale one becomes a pale painting. A painting's contrast is the style's, not the "
    "photograph's; with batch norm a network has to learn that, with instance norm it is built in. The chart is an experiment that was recorded: two "
    "networks trained from scratch, one with each norm, on the same photographs, three times.",
    caution="The pictures show what the norm does, not which trains better: this network was trained with instance norm. The chart does, for small "
    "networks, 300 steps and 64 pixels; bench/instance_norm.py repeats it. Conditions don't compare with each other.",
)
def norms(
    model: Model,
    image: Tensor,
    *,
    style: str = "starry_night",
    contrast: Annotated[float, Between(0.0, 1.0)] = 0.25,
    size: Annotated[int, Between(32, 1024)] = 144,
) -> Result:
    """Paints a photograph and a pale copy with instance norm, then with statistics of both together, as batch norm takes them.

    `values["instance"]` and `["batch"]` are N×2×3×H×W, the painted photograph and its painted pale copy; `["apart"]`, N×2, is the mean absolute
    difference between these two with either norm; `["style"]`, N×2×2 (norm, copy), is the style loss E to the painting (Gatys 2016, eq. 4)
    divided by the photograph's own; `["recorded"]` are the losses on held-out photographs of the networks of `bench/instance_norm.py`.

    Args:
        style: A style of the network that comes with Sightline, or a blend such as "scream:1,great_wave:2".
        contrast: Contrast of the pale copy, a share of the photograph's.
        size: Short side in pixels at which is painted, if the photograph has more.
    """
    photo = images.at_most(image, size)
    middle = photo.mean((1, 2, 3), keepdim=True)
    pale = middle + contrast * (photo - middle)
    network = read_styles("painters", model.device)
    mix = network.mix(blend(style))
    found = [painted(network, torch.cat(pair), mix) for pair in zip(photo.split(1), pale.split(1), strict=True)]
    instance, batch = (torch.stack(pictures) for pictures in zip(*found, strict=True))
    apart = torch.stack([(made[:, 0] - made[:, 1]).abs().flatten(1).mean(1) for made in (instance, batch)], 1)
    losses = torch.stack([kept(model, network, photo, made, style) for made in (instance, batch)], 1)
    given = torch.stack([photo, pale], 1).cpu()
    rows = torch.stack([given, instance, batch], 2).flatten(0, 2)
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    values = {"instance": instance, "batch": batch, "apart": apart, "style": losses, "recorded": recorded}
    panels = {"norms": render.sheet(rows, columns=3), "recorded": chart(recorded)}
    return Result(panels, values, {"norms": told(style, apart, losses), "recorded": said(recorded)})


def painted(network: Styles, both: Tensor, mix: Tensor) -> tuple[Tensor, Tensor]:
    """A photograph and its copy, each normalized by itself, and both together."""
    each = restyled(network, both, mix)
    network.network.normalize_together()
    together = restyled(network, both, mix)
    network.network.normalize_together(False)
    return each, together


def kept(model: Model, network: Styles, photo: Tensor, made: Tensor, style: str) -> Tensor:
    """Share of the photograph's style loss that the painted photograph and its painted copy have, N×2."""
    shares: list[Tensor] = []
    for picture in made.unbind(1):
        before, after = manners(model, network, photo, {style: picture})
        shares.append((after / before.clamp_min(1e-12))[:, 0])
    return torch.stack(shares, 1)


def chart(recorded: Mapping[str, Mapping[str, Sequence[float]]]) -> Tensor:
    """Losses of all runs, one column of dots for each norm and condition, lines between runs of one seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.6, 2.9), dpi=100, layout="constrained")
    axes: Any = figure.subplots(1, len(recorded))
    for axis, (condition, found) in zip(axes, recorded.items(), strict=True):
        axis.plot([0, 1], [found["instance"], found["batch"]], color="#bbbbbb", linewidth=1, zorder=1)
        for place, (norm, color) in enumerate(COLORS.items()):
            axis.scatter([place] * len(found[norm]), found[norm], color=color, zorder=2)
        axis.set_title(condition, fontsize=9)
        axis.set_xticks([0, 1], [f"{norm} norm" for norm in COLORS], fontsize=8)
        axis.set(xlim=(-0.5, 1.5), ylim=(0, 1.1 * max(max(losses) for losses in found.values())))
        axis.tick_params(axis="y", labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("loss on held-out photographs", fontsize=8)
    return render.drawn(figure)


def told(style: str, apart: Tensor, losses: Tensor) -> str:
    """The pictures in words."""
    (one, two), (each, together) = apart.mean(0).tolist(), losses.mean(0)
    return (
        f"Rows: the photograph, and with little contrast. Columns: as given; {style} with instance norm; the same weights with statistics of both pictures "
        f"together, as batch norm takes them. The two paintings differ by {one:.3f} with instance norm, by {two:.3f} with batch statistics (mean over "
        f"pixels from 0 to 1). Of the photograph's style loss {float(each[0]):.0%} and, of the pale one, {float(each[1]):.0%} are left with instance norm; "
        f"{float(together[0]):.0%} and {float(together[1]):.0%} with batch statistics."
    )


def said(recorded: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """What came out of the recorded experiment."""
    parts: list[str] = []
    for condition, found in recorded.items():
        wins = sum(one < two for one, two in zip(found["instance"], found["batch"], strict=True))
        parts.append(
            f"{condition}: {sum(found['batch']) / sum(found['instance']):.2f} times the loss with batch norm, {wins} of {len(found['batch'])} pairs"
        )
    return f"Recorded, not computed now. Networks trained with either norm, a line between runs of one seed; lower is better. {'; '.join(parts)}."
