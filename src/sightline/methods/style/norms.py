"""Instance norm against batch norm in a style network (Ulyanov 2017): what each makes of a pale photograph, and what training with each came to."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from sightline.generators.apply import restyle_images
from sightline.generators.checkpoint import (
    FixedStyleNetwork,
    parse_style_blend,
    read_fixed_style_network,
)
from sightline.images.io import limit_short_side
from sightline.images.library import ASSETS_FOLDER
from sightline.images.plotting.maps import make_contact_sheet, rasterize_figure
from sightline.methods.style.stylize import measure_stylized_style
from sightline.models.model import Model
from sightline.registry.method import register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.result import Result

RECORDED_EXPERIMENT = ASSETS_FOLDER / "instance_norm.json"

NORM_COLORS = {"instance": "#a65d00", "batch": "#3b6ea5"}


@register_method(
    chapter="artistic",
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
    contrast: Annotated[float, ValueRange(0.0, 1.0)] = 0.25,
    size: Annotated[int, ValueRange(32, 1024)] = 144,
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
    photo = limit_short_side(image, size)
    middle = photo.mean((1, 2, 3), keepdim=True)
    pale = middle + contrast * (photo - middle)
    network = read_fixed_style_network("painters", model.device)
    mix = network.make_mix(parse_style_blend(style))
    found = [
        restyle_with_both_norms(network, torch.cat(pair), mix)
        for pair in zip(photo.split(1), pale.split(1), strict=True)
    ]
    instance, batch = (torch.stack(pictures) for pictures in zip(*found, strict=True))
    apart = torch.stack(
        [(made[:, 0] - made[:, 1]).abs().flatten(1).mean(1) for made in (instance, batch)], 1
    )
    losses = torch.stack(
        [measure_style_share(model, network, photo, made, style) for made in (instance, batch)], 1
    )
    given = torch.stack([photo, pale], 1).cpu()
    rows = torch.stack([given, instance, batch], 2).flatten(0, 2)
    recorded = json.loads(RECORDED_EXPERIMENT.read_text(encoding="utf-8"))
    values = {
        "instance": instance,
        "batch": batch,
        "apart": apart,
        "style": losses,
        "recorded": recorded,
    }
    panels = {
        "norms": make_contact_sheet(rows, columns=3),
        "recorded": plot_recorded_losses(recorded),
    }
    return Result(
        panels,
        values,
        {
            "norms": describe_norm_comparison(style, apart, losses),
            "recorded": describe_recorded_losses(recorded),
        },
    )


def restyle_with_both_norms(
    network: FixedStyleNetwork, pair: Tensor, mix: Tensor
) -> tuple[Tensor, Tensor]:
    """A photograph and its copy, each normalized by itself, and both together."""
    each = restyle_images(network, pair, mix)
    network.network.set_batch_statistics()
    together = restyle_images(network, pair, mix)
    network.network.set_batch_statistics(False)
    return each, together


def measure_style_share(
    model: Model, network: FixedStyleNetwork, photo: Tensor, restyled_pairs: Tensor, style: str
) -> Tensor:
    """Share of the photograph's style loss that the painted photograph and its painted copy have, N×2."""
    shares: list[Tensor] = []
    for picture in restyled_pairs.unbind(1):
        before, after = measure_stylized_style(model, network, photo, {style: picture})
        shares.append((after / before.clamp_min(1e-12))[:, 0])
    return torch.stack(shares, 1)


def plot_recorded_losses(recorded: Mapping[str, Mapping[str, Sequence[float]]]) -> Tensor:
    """Losses of all runs, one column of dots for each norm and condition, lines between runs of one seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.6, 2.9), dpi=100, layout="constrained")
    axes: Any = figure.subplots(1, len(recorded))
    for axis, (condition, found) in zip(axes, recorded.items(), strict=True):
        axis.plot(
            [0, 1], [found["instance"], found["batch"]], color="#bbbbbb", linewidth=1, zorder=1
        )
        for place, (norm, color) in enumerate(NORM_COLORS.items()):
            axis.scatter([place] * len(found[norm]), found[norm], color=color, zorder=2)
        axis.set_title(condition, fontsize=9)
        axis.set_xticks([0, 1], [f"{norm} norm" for norm in NORM_COLORS], fontsize=8)
        axis.set(xlim=(-0.5, 1.5), ylim=(0, 1.1 * max(max(losses) for losses in found.values())))
        axis.tick_params(axis="y", labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("loss on held-out photographs", fontsize=8)
    return rasterize_figure(figure)


def describe_norm_comparison(style: str, differences: Tensor, losses: Tensor) -> str:
    """The pictures in words."""
    (one, two), (each, together) = differences.mean(0).tolist(), losses.mean(0)
    return (
        f"Rows: the photograph, and with little contrast. Columns: as given; {style} with instance norm; the same weights with statistics of both pictures "
        f"together, as batch norm takes them. The two paintings differ by {one:.3f} with instance norm, by {two:.3f} with batch statistics (mean over "
        f"pixels from 0 to 1). Of the photograph's style loss {float(each[0]):.0%} and, of the pale one, {float(each[1]):.0%} are left with instance norm; "
        f"{float(together[0]):.0%} and {float(together[1]):.0%} with batch statistics."
    )


def describe_recorded_losses(recorded: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """What came out of the recorded experiment."""
    parts: list[str] = []
    for condition, found in recorded.items():
        wins = sum(one < two for one, two in zip(found["instance"], found["batch"], strict=True))
        parts.append(
            f"{condition}: {sum(found['batch']) / sum(found['instance']):.2f} times the loss with batch norm, {wins} of {len(found['batch'])} pairs"
        )
    return f"Recorded, not computed now. Networks trained with either norm, a line between runs of one seed; lower is better. {'; '.join(parts)}."
