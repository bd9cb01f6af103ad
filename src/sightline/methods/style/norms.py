"""Instance norm against batch norm in a style network (Ulyanov 2017).

The method shows what each norm makes of a pale photograph, and how two networks trained with either
compare.
"""

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
from sightline.images.io.library import ASSETS_FOLDER
from sightline.images.plotting.captioned_rows import FigureRow
from sightline.images.plotting.charts import rasterize_figure
from sightline.images.plotting.figures import PictureRows
from sightline.images.plotting.maps import make_contact_sheet
from sightline.images.transforms import limit_short_side
from sightline.methods.style.stylize import (
    MIN_STYLE_LOSS,
    SHIPPED_NETWORK,
    measure_stylized_style,
)
from sightline.models.model import Model
from sightline.registry.method import register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.result import Result

RECORDED_EXPERIMENT = ASSETS_FOLDER / "instance_norm.json"

NORM_TILE_SIDE = 200  # pixels

NORM_COLORS = {"instance": "#a65d00", "batch": "#3b6ea5"}

# Losses by condition of the experiment, then by norm.
RecordedLosses = Mapping[str, Mapping[str, Sequence[float]]]


@register_method(
    chapter="artistic",
    title="Instance norm against batch norm",
    question="Why does a style network normalize every photograph by itself?",
    reading="Left the photograph, below it the same with little contrast. In the middle both "
    "restyled by the shipped network, whose instance norms take mean and deviation of each picture "
    "by itself: the two results are nearly equal. Right the same network with the same weights, "
    "with mean and deviation over both pictures together, as batch norm takes them: the pale "
    "photograph gives a pale result. A painting's contrast is the style's, not the photograph's; "
    "with batch norm a network has to learn that, with instance norm it is built in. The chart is "
    "a recorded experiment: two networks trained from scratch, one with each norm, on the same "
    "photographs, three times.",
    caution="The pictures show what the norm does, not which trains better: this network was "
    "trained with instance norm. The chart does, for small networks, 300 steps and 64 pixels; "
    "bench/instance_norm.py repeats it. Losses of different conditions can't be compared.",
    former_names={"size": "max_side"},
)
def norms(
    model: Model,
    image: Tensor,
    *,
    style: str = "starry_night",
    contrast: Annotated[float, ValueRange(0.0, 1.0)] = 0.25,
    max_side: Annotated[int, ValueRange(32, 1024)] = 144,
) -> Result:
    """Restyles a photograph and a pale copy with instance norm and with batch statistics.

    `values["instance"]` and `["batch"]` are N×2×3×H×W in [0, 1], the restyled photograph and its
    restyled pale copy; `["apart"]`, N×2, is the mean absolute difference between these two with
    either norm; `["style"]`, N×2×2 (norm, copy), is the style loss E to the painting (Gatys 2016,
    eq. 4) divided by the photograph's own; `["recorded"]` are the losses on held-out photographs of
    the networks of `bench/instance_norm.py`.

    Args:
        style: A style of the shipped network, or a blend such as "scream:1,great_wave:2".
        contrast: Contrast of the pale copy, a share of the photograph's.
        max_side: Short side in pixels to which a larger photograph is reduced.
    """
    photo = limit_short_side(image, max_side)
    mean = photo.mean((1, 2, 3), keepdim=True)
    pale_photo = mean + contrast * (photo - mean)
    network = read_fixed_style_network(SHIPPED_NETWORK, model.device)
    mix = network.make_mix(parse_style_blend(style, network.names))

    instance_results: list[Tensor] = []
    batch_results: list[Tensor] = []
    for pair in zip(photo.split(1), pale_photo.split(1), strict=True):
        instance_result, batch_result = restyle_with_both_norms(network, torch.cat(pair), mix)
        instance_results.append(instance_result)
        batch_results.append(batch_result)
    instance = torch.stack(instance_results)
    batch = torch.stack(batch_results)

    differences = torch.stack(
        [measure_pair_difference(instance), measure_pair_difference(batch)], 1
    )
    style_shares = torch.stack(
        [
            measure_style_share(model, photo, instance, style),
            measure_style_share(model, photo, batch, style),
        ],
        1,
    )
    recorded: RecordedLosses = json.loads(RECORDED_EXPERIMENT.read_text(encoding="utf-8"))
    values = {
        "instance": instance,
        "batch": batch,
        "apart": differences,
        "style": style_shares,
        "recorded": recorded,
    }

    inputs = torch.stack([photo, pale_photo], 1).cpu()
    columns = torch.stack([inputs, instance, batch], 2)
    figures = {
        "norms": make_contact_sheet(columns.flatten(0, 2), columns=3),
        "recorded": plot_recorded_losses(recorded),
    }
    captions = {
        "norms": describe_norm_comparison(style, differences, style_shares),
        "recorded": describe_recorded_losses(recorded),
    }
    rows = {"norms": make_norm_rows(columns[0])}
    return Result(figures, values, captions, figures=rows)


def make_norm_rows(pictures: Tensor) -> PictureRows:
    """The photograph and its pale copy, each restyled with either norm: 2×3×3×H×W."""
    titles = ("the photograph", "the same with little contrast")
    captions = ("the input", "with instance norm", "with batch statistics")
    rows = [
        FigureRow(title, row.split(1), captions)
        for title, row in zip(titles, pictures, strict=True)
    ]
    return PictureRows(rows, NORM_TILE_SIDE)


def restyle_with_both_norms(
    network: FixedStyleNetwork, pair: Tensor, mix: Tensor
) -> tuple[Tensor, Tensor]:
    """Restyles a pair 2×3×H×W, first with each image normalized by itself, then both together."""
    instance_result = restyle_images(network, pair, mix)
    network.network.set_batch_statistics()
    batch_result = restyle_images(network, pair, mix)
    network.network.set_batch_statistics(False)
    return instance_result, batch_result


def measure_pair_difference(restyled_pairs: Tensor) -> Tensor:
    """The mean absolute difference within pairs N×2×3×H×W: N."""
    difference = restyled_pairs[:, 0] - restyled_pairs[:, 1]
    return difference.abs().flatten(1).mean(1)


def measure_style_share(model: Model, photo: Tensor, restyled_pairs: Tensor, style: str) -> Tensor:
    """The style loss of restyled pairs N×2×3×H×W divided by the photographs' own: N×2."""
    shares: list[Tensor] = []
    for restyled in restyled_pairs.unbind(1):
        photo_loss, restyled_loss = measure_stylized_style(model, photo, [style], [restyled])
        share = restyled_loss / photo_loss.clamp_min(MIN_STYLE_LOSS)
        shares.append(share[:, 0])
    return torch.stack(shares, 1)


def plot_recorded_losses(recorded: RecordedLosses) -> Tensor:
    """Plots the losses of all runs, one panel for each condition and a line for each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.6, 2.9), dpi=100, layout="constrained")
    axes: Any = figure.subplots(1, len(recorded))
    for axis, (condition, losses) in zip(axes, recorded.items(), strict=True):
        axis.set_title(condition, fontsize=9)
        plot_paired_losses(axis, losses)
    axes[0].set_ylabel("loss on held-out photographs", fontsize=8)
    return rasterize_figure(figure)


def plot_paired_losses(axis: Any, losses: Mapping[str, Sequence[float]]) -> None:
    """Plots a column of dots for each norm, and a line between the runs of each seed."""
    seed_lines = [losses["instance"], losses["batch"]]
    axis.plot([0, 1], seed_lines, color="#bbbbbb", linewidth=1, zorder=1)
    for x, (norm, color) in enumerate(NORM_COLORS.items()):
        axis.scatter([x] * len(losses[norm]), losses[norm], color=color, zorder=2)

    largest_loss = max(max(norm_losses) for norm_losses in losses.values())
    axis.set(xlim=(-0.5, 1.5), ylim=(0, 1.1 * largest_loss))
    axis.set_xticks([0, 1], [f"{norm} norm" for norm in NORM_COLORS], fontsize=8)
    axis.tick_params(axis="y", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def describe_norm_comparison(style: str, differences: Tensor, style_shares: Tensor) -> str:
    """The caption of the pictures, with means over the photographs."""
    instance_difference, batch_difference = differences.mean(0).tolist()
    instance_shares, batch_shares = style_shares.mean(0).tolist()
    return (
        "Rows: the photograph, and the same with little contrast. Columns: the input; "
        f"{style} with instance norm; the same weights with statistics of both pictures together, "
        f"as batch norm takes them. The two results differ by {instance_difference:.3f} with "
        f"instance norm and by {batch_difference:.3f} with batch statistics (mean over pixels from "
        f"0 to 1). Their style losses are {instance_shares[0]:.0%} and, of the pale one, "
        f"{instance_shares[1]:.0%} of the photograph's with instance norm, {batch_shares[0]:.0%} "
        f"and {batch_shares[1]:.0%} with batch statistics."
    )


def describe_recorded_losses(recorded: RecordedLosses) -> str:
    """The caption of the recorded experiment."""
    findings: list[str] = []
    for condition, losses in recorded.items():
        pairs = list(zip(losses["instance"], losses["batch"], strict=True))
        win_count = sum(instance_loss < batch_loss for instance_loss, batch_loss in pairs)
        ratio = sum(losses["batch"]) / sum(losses["instance"])
        findings.append(
            f"{condition}: {ratio:.2f} times the loss with batch norm,"
            f" instance norm lower in {win_count} of {len(pairs)} pairs"
        )
    return (
        "Recorded, not computed now. Networks trained with either norm, a line between runs of one"
        f" seed; lower is better. {'; '.join(findings)}."
    )
