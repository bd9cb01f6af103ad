"""Style transfer by optimization: the content of one picture in the style of others (Gatys 2016)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.color import copy_photo_colors, match_colors, match_luminance
from sightline.images.io import crop_center, resolve_image
from sightline.images.library import read_style_picture
from sightline.images.plotting.maps import arrange_in_row
from sightline.images.transforms import resize_bicubic
from sightline.methods.style.setup import StyleLossBuilder
from sightline.models.model import Model
from sightline.models.weights.published import recognize_published_weights
from sightline.optim.multiscale import (
    DEFAULT_LEARNING_RATES,
    FREQUENCY_FALLOFF,
    CoarseToFineResult,
    StageOptimizer,
    optimize_coarse_to_fine,
    plan_stages,
)
from sightline.optim.perceptual.layers import PerceptualLayers, choose_perceptual_layers
from sightline.optim.perceptual.presets import STYLE_PRESETS, StylePreset
from sightline.optim.perceptual.style_loss import measure_content_losses, measure_style_losses
from sightline.registry.method import register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.progress import Callback
from sightline.registry.result import Result

MIN_PHOTO_SIDE = 32

ADAM_PAIRS = 2  # what Adam keeps, in pairs of pictures: its two moments, the moving average and the picture before the step

# Short side of the first size: a photograph has its layout already, and would lose it at 64 pixels.
FIRST_SIDES = {"content": 128, "noise": 64}


@register_method(
    chapter="artistic",
    title="Style transfer",
    question="What would this picture look like, painted like that one?",
    reading="The photograph and the style, then the painted picture: things stay where the content layer saw them, colours and strokes come from the style.",
    caution="Style here means which features occur together, wherever they are: composition and meaning are no part of it. How much of the photograph is left is a matter of the weights.",
    tour_runs=({"steps": 80},),
    quick_parameters={"steps": 15},
)
def style(
    model: Model,
    image: Tensor,
    *,
    styles: tuple[Tensor | str, ...] = ("starry_night",),
    preset: Literal["relative", "gatys", "authors", "johnson", "crowson"] = "relative",
    loss: Literal["preset", "gram", "w2", "sliced"] = "preset",
    content_layers: tuple[str, ...] | None = None,
    style_layers: tuple[str, ...] | None = None,
    content_weight: Annotated[float | None, ValueRange(0, 1e6)] = None,
    style_weight: Annotated[float | None, ValueRange(0, 1e9)] = None,
    tv_weight: Annotated[float | None, ValueRange(0, 1e6)] = None,
    mix: tuple[float, ...] | None = None,
    masks: tuple[Tensor | str, ...] | None = None,
    style_scale: Annotated[float, ValueRange(0.1, 10)] = 1.0,
    color: Literal["style", "match", "luminance"] = "style",
    start: Literal["content", "noise"] = "content",
    optimizer: Literal["lbfgs", "adam"] = "lbfgs",
    steps: Annotated[int, ValueRange(1, 100_000)] = 100,
    lr: Annotated[float | None, ValueRange(1e-6, 1000)] = None,
    coarse: bool = True,
    memory: Annotated[float, ValueRange(0.01, 10_000)] = 4.0,
    seed: int = 0,
    callback: Callback | None = None,
) -> Result:
    """Paints the content of an image in the style of one or several pictures.

    The image moves until its features in the content layers are those of the photograph, and the Gram matrices of those in
    the style layers those of the style. `values["image"]` is N×3×H×W; `values["scores"]` minus the loss of every step;
    `values["style_losses"]` Gatys' E (or the other distance) by layer, beside the number that the preset's authors would
    print; `content_losses` mean squared differences by layer.

    Args:
        styles: The style pictures, of any size: files, tensors, samples, or shipped paintings by name, such as great_wave.
        preset: Whose weights: "relative" (our own, for any network), or for VGG "gatys" (the paper), "authors" (their notebook), "johnson" (fast-neural-style), "crowson"
            (style-transfer-pytorch).
        loss: How styles are compared: "gram" (Gatys' E), "w2" (mean and covariance as Gaussians), "sliced" (whole
            distributions, Heitz 2021), or the preset's own.
        content_layers: Layers whose features are kept; by default those tuned for the family of the network.
        style_layers: Layers whose statistics make the style, the deepest last.
        content_weight: Weight of the mean squared content difference, instead of the preset's.
        style_weight: Weight of the style's distance, instead of the preset's.
        tv_weight: Weight of total variation, instead of the preset's.
        mix: Share of each style; all alike by default.
        masks: One picture for each style, white where it is wanted; without any, all styles are mixed everywhere.
        style_scale: Size of the style's strokes: 2 makes them twice as large.
        color: "style" takes the style's colours; "match" brings the style to the photograph's colours first; "luminance"
            paints the light only and keeps the photograph's colours.
        start: "content" starts from the photograph, "noise" from nothing.
        optimizer: "lbfgs" or "adam" (with the mean of its last pictures).
        steps: Steps at each size.
        lr: Step size; 1 for "lbfgs", 0.02 for "adam".
        coarse: Whether to paint at small sizes first, growing by √2 from 128 pixels, from 64 out of noise.
        memory: GB that the painting may take; what needs more is painted in tiles with the very same gradient.
    """
    if min(image.shape[-2:]) < MIN_PHOTO_SIDE:
        raise SightlineError(
            f"the image is {image.shape[-2]}×{image.shape[-1]} pixels; a painting needs {MIN_PHOTO_SIDE}×{MIN_PHOTO_SIDE} or more"
        )
    weighed = override_preset(
        STYLE_PRESETS[preset],
        loss,
        {"content": content_weight, "style": style_weight, "tv": tv_weight},
    )
    pictures = [read_style_picture(picture)[:1] for picture in styles]
    regions = (
        [resolve_image(mask)[:1].mean(1, keepdim=True) for mask in masks]
        if masks is not None
        else None
    )
    shares = check_style_shares(pictures, mix, regions, weighed)
    usual = choose_perceptual_layers(model)
    layers = PerceptualLayers(content_layers or usual.content, style_layers or usual.style)
    size, made, finals = (
        (image.shape[2], image.shape[3]),
        list[CoarseToFineResult](),
        list[dict[str, Any]](),
    )
    plan = plan_stages(size, steps, min_side=FIRST_SIDES[start] if coarse else max(size))
    for number, photo in enumerate(image.cpu().split(1)):
        easel = StyleLossBuilder(
            model,
            photo,
            [recolor_style(one, photo, color) for one in pictures],
            layers,
            weighed,
            shares,
            regions,
            style_scale,
            memory,
            None if optimizer == "lbfgs" else ADAM_PAIRS,
            seed,
        )
        tile = easel.choose_tile_side(size)  # refuses what is too large before the first step
        plan = [
            stage
            for stage in plan
            if stage.size == size or easel.has_large_enough_styles(stage.size)
        ]
        first = (
            resize_bicubic(photo, plan[0].size)
            if start == "content"
            else make_gray_noise(plan[0].size, seed + number)
        )
        brush = StageOptimizer(
            optimizer,
            lr if lr is not None else DEFAULT_LEARNING_RATES[optimizer],
            easel.choose_pair_count(size),
            FREQUENCY_FALLOFF,
        )
        done = optimize_coarse_to_fine(
            model,
            easel.build_objective,
            first.to(model.device),
            plan,
            brush,
            average=optimizer == "adam",
            callback=callback,
        )
        finals.append({**measure_painting_losses(easel, done.image), "tile": tile})
        made.append(
            replace(
                done,
                image=copy_photo_colors(done.image.cpu(), photo)
                if color == "luminance"
                else done.image.cpu(),
            )
        )
        if done.stopped:
            break
    pictures_made = torch.cat([one.image for one in made])
    notes = [
        *made[0].notes,
        *filter(
            None,
            [
                STYLE_PRESETS[preset].describe_network_mismatch(
                    recognize_published_weights(model.network)
                )
            ],
        ),
    ]
    values = {
        "image": pictures_made, "scores": torch.tensor(made[0].scores), "work": made[0].weighted_evaluations, "notes": notes, **finals[0],
    }  # fmt: skip
    panel = arrange_in_row(
        image[:1].cpu(),
        *(crop_style_for_figure(one, size[0]) for one in pictures),
        pictures_made[:1],
    )
    return Result(
        {"style": panel}, values, {"style": describe_style_transfer(values, plan, weighed, layers)}
    )


def override_preset(
    preset: StylePreset, loss: str, weights: Mapping[str, float | None]
) -> StylePreset:
    """The preset with the weights and the kind of loss that were asked for instead."""
    given = {name: value for name, value in weights.items() if value is not None}
    return replace(preset, **given, **({} if loss == "preset" else {"kind": loss}))


def check_style_shares(
    pictures: Sequence[Tensor],
    mix: tuple[float, ...] | None,
    masks: Sequence[Tensor] | None,
    preset: StylePreset,
) -> list[float]:
    """The share of each style; raises SightlineError where styles, shares and masks don't go together."""
    if not pictures:
        raise SightlineError("styles is empty; give one picture at least")
    shares = list(mix) if mix is not None else [1.0] * len(pictures)
    if len(shares) != len(pictures) or min(shares) < 0 or sum(shares) <= 0:
        raise SightlineError(
            f"mix is {tuple(shares)}; it must be one share for each of the {len(pictures)} styles, none below 0"
        )
    if masks is not None and len(masks) != len(pictures):
        raise SightlineError(
            f"{len(masks)} masks were given for {len(pictures)} styles; each style needs one"
        )
    if masks is not None and (
        empty := [number for number, mask in enumerate(masks) if float(mask.max()) <= 0]
    ):
        raise SightlineError(
            f"mask {empty[0] + 1} is black everywhere; it must be white where its style is wanted"
        )
    if preset.kind == "sliced" and (len(pictures) > 1 or masks is not None):
        raise SightlineError(
            "loss='sliced' takes one style and no masks; choose 'gram' or 'w2' to mix styles"
        )
    return shares


def recolor_style(picture: Tensor, photo: Tensor, color: str) -> Tensor:
    """The style picture with the colours that it shall give."""
    if color == "match":
        return match_colors(picture, photo)
    return match_luminance(picture, photo) if color == "luminance" else picture


def make_gray_noise(size: tuple[int, int], seed: int) -> Tensor:
    """Gray with noise, 1×3×H×W."""
    return (
        0.5 + 0.1 * torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(seed))
    ).clamp(0, 1)


def measure_painting_losses(builder: StyleLossBuilder, image: Tensor) -> dict[str, Any]:
    """The losses of the finished picture by layer: E and the authors' number for style, mean squares for content."""
    painting = builder.get_loss((image.shape[2], image.shape[3]))
    distances = measure_style_losses(
        painting, builder.model, image, builder.choose_tile_side((image.shape[2], image.shape[3]))
    )
    both = builder.preset.pair_losses(list(distances.values()), builder.list_channels())
    return {
        "style_losses": {name: list(pair) for name, pair in zip(distances, both, strict=True)},
        "content_losses": measure_content_losses(
            painting,
            builder.model,
            image,
            builder.choose_tile_side((image.shape[2], image.shape[3])),
        ),
    }


def crop_style_for_figure(picture: Tensor, height: int) -> Tensor:
    """A style picture for the figure, no wider than it is high twice."""
    return crop_center(
        picture,
        min(picture.shape[2], 2 * picture.shape[3]),
        min(picture.shape[3], 2 * picture.shape[2]),
    )


def describe_style_transfer(
    values: Mapping[str, Any], plan: Sequence[Any], preset: StylePreset, layers: PerceptualLayers
) -> str:
    """What the figure shows, and what came out."""
    distances, content = values["style_losses"], values["content_losses"]
    kept = (
        f"mean squared content difference {sum(content.values()) / len(content):.3g} at {', '.join(content)}; "
        if content
        else ""
    )
    kind = {"gram": "Gatys' E", "w2": "Wasserstein distance", "sliced": "sliced distance"}[
        preset.kind
    ]
    sizes = f"{len(plan)} sizes" if len(plan) > 1 else "one size"
    tiles = f" In tiles of {values['tile']} pixels." if values["tile"] else ""
    return (
        f"The photograph, the style, and the painting after {len(values['scores'])} steps at {sizes}: {kept}"
        f"{kind} by layer {', '.join(f'{name} {pair[0]:.2g}' for name, pair in distances.items())} "
        f"(as the preset's authors count, {math.fsum(pair[1] for pair in distances.values()):.3g} in all).{tiles} {' '.join(values['notes'])}"
    ).strip()
