"""Style transfer by optimization: the content of one image in the style of others (Gatys 2016)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.color import copy_photo_colors, match_colors, match_luminance
from sightline.images.io.library import read_style_picture
from sightline.images.io.pictures import resolve_image
from sightline.images.transforms import ImageSize, resize_bicubic
from sightline.methods.style.setup import StyleLossBuilder
from sightline.methods.style.transfer_result import (
    StyleTransfer,
    collect_values,
    describe_style_transfer,
    make_transfer_figure,
    measure_transfer,
)
from sightline.models.model import Model
from sightline.models.weights.published import recognize_published_weights
from sightline.optim.multiscale import (
    DEFAULT_LEARNING_RATES,
    FREQUENCY_FALLOFF,
    OptimizerName,
    Stage,
    StageOptimizer,
    optimize_coarse_to_fine,
    plan_stages,
)
from sightline.optim.perceptual.layers import (
    PerceptualLayers,
    choose_perceptual_layers,
    require_image_maps,
)
from sightline.optim.perceptual.presets import STYLE_PRESETS, StylePreset
from sightline.registry.method import register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.progress import Callback
from sightline.registry.result import Result

StartName = Literal["content", "noise"]

ColorMode = Literal["style", "match", "luminance"]

MIN_PHOTO_SIDE = 32

# Adam keeps two moments, the moving average, and the image before the step: as much as two pairs.
ADAM_PAIRS = 2

# Short side of the first size. A photograph has its layout already and would lose it at 64 pixels.
FIRST_SIDES = {"content": 128, "noise": 64}


@register_method(
    chapter="artistic",
    title="Style transfer",
    question="What would this picture look like, painted like that one?",
    reading="Left the photograph, then the styles, then the result. Objects stay where the content "
    "layer saw them; colours and strokes come from the style.",
    caution="Style means here which features occur together, at any position: composition and "
    "meaning are not transferred. The weights decide how much of the photograph is preserved.",
    tour_runs=({"steps": 80},),
    quick_parameters={"steps": 15},
    repaints=True,
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
    """Renders the content of an image in the style of one or several pictures.

    The image is optimized until its features in the content layers match the photograph's, and its
    Gram matrices in the style layers match the style's. `values["image"]` is N×3×H×W in [0, 1]. The
    other values are of the first image: `["scores"]`, minus the loss of every step;
    `["style_losses"]`, by layer Gatys' E (or the other distance) and the number that the preset's
    authors would print; `["content_losses"]`, mean squared differences by layer; `["work"]`,
    evaluations of the network in units of the final size; `["tile"]`, the side of the tiles in
    pixels, None for one piece; `["notes"]`, warnings.

    Args:
        styles: The style pictures, of any size: files, tensors, samples, or shipped paintings by
            name, such as great_wave.
        preset: Whose weights: "relative" (our own, for any network), or for VGG "gatys" (the
            paper), "authors" (their notebook), "johnson" (fast-neural-style), "crowson"
            (style-transfer-pytorch).
        loss: How styles are compared: "gram" (Gatys' E), "w2" (mean and covariance as Gaussians),
            "sliced" (whole distributions, Heitz 2021), or the preset's own.
        content_layers: Layers whose features are preserved; by default those tuned for the family
            of the network.
        style_layers: Layers whose statistics make the style, the deepest last.
        content_weight: Weight of the mean squared content difference, instead of the preset's.
        style_weight: Weight of the style distance, instead of the preset's.
        tv_weight: Weight of total variation, instead of the preset's.
        mix: Share of each style; equal by default.
        masks: One picture for each style, white where the style should be; without any, all styles
            are mixed everywhere.
        style_scale: Size of the style's strokes: 2 makes them twice as large.
        color: "style" takes the style's colours; "match" adapts the style to the photograph's
            colours first; "luminance" changes luminance only and keeps the photograph's colours.
        start: "content" starts from the photograph, "noise" from gray noise.
        optimizer: "lbfgs", or "adam" (with a moving average of its images).
        steps: Steps at each size.
        lr: Step size; 1 for "lbfgs", 0.02 for "adam".
        coarse: Whether to start at a small size and grow by √2: from 128 pixels, from 64 out of
            noise.
        memory: GB that the optimization may take; what needs more is computed in tiles with the
            same gradient.
    """
    refuse_small_photo(image)
    weights = {"content": content_weight, "style": style_weight, "tv": tv_weight}
    weighted_preset = override_preset(STYLE_PRESETS[preset], loss, weights)
    style_images = [read_style_picture(source)[:1] for source in styles]
    mask_images = read_masks(masks)
    style_shares = check_style_shares(style_images, mix, mask_images, weighted_preset)

    layers = choose_transfer_layers(model, content_layers, style_layers)
    size = (image.shape[2], image.shape[3])
    stages = plan_stages(size, steps, min_side=FIRST_SIDES[start] if coarse else max(size))
    settings = OptimizationSettings(stages, start, optimizer, lr, callback)

    transfers: list[StyleTransfer] = []
    results: list[Tensor] = []
    for number, photo in enumerate(image.cpu().split(1)):
        builder = StyleLossBuilder(
            model,
            photo,
            [recolor_style(style_image, photo, color) for style_image in style_images],
            layers,
            weighted_preset,
            style_shares,
            masks=mask_images,
            style_scale=style_scale,
            memory_gb=memory,
            history_size=None if optimizer == "lbfgs" else ADAM_PAIRS,
            seed=seed,
        )
        transfer = transfer_style(builder, photo, settings, seed + number)
        transfers.append(transfer)
        results.append(restore_photo_colors(transfer.run.image.cpu(), photo, color))
        if transfer.run.stopped:
            break

    result_images = torch.cat(results)
    mismatch = STYLE_PRESETS[preset].describe_network_mismatch(
        recognize_published_weights(model.network)
    )
    notes = [*transfers[0].run.notes, mismatch] if mismatch else list(transfers[0].run.notes)
    return Result(
        {"style": make_transfer_figure(image, style_images, result_images)},
        collect_values(result_images, transfers[0], notes),
        {"style": describe_style_transfer(transfers[0], weighted_preset.kind, notes)},
    )


# ── input ──


def refuse_small_photo(image: Tensor) -> None:
    height, width = image.shape[-2:]
    if min(height, width) < MIN_PHOTO_SIDE:
        raise SightlineError(
            f"the image is {height}×{width} pixels;"
            f" style transfer needs {MIN_PHOTO_SIDE}×{MIN_PHOTO_SIDE} or more"
        )


def choose_transfer_layers(
    model: Model, content: tuple[str, ...] | None, style: tuple[str, ...] | None
) -> PerceptualLayers:
    """The layers of content and style: those of the caller, else those of the network's family.

    Raises SightlineError for layers that are no maps of the image.
    """
    require_image_maps(model, [*(content or ()), *(style or ())])
    if content and style:
        return PerceptualLayers(content, style)
    default_layers = choose_perceptual_layers(model)
    return PerceptualLayers(content or default_layers.content, style or default_layers.style)


def override_preset(
    preset: StylePreset, loss: str, weights: Mapping[str, float | None]
) -> StylePreset:
    """The preset with the distance and the weights that were given in place of its own."""
    overrides: dict[str, Any] = {
        name: weight for name, weight in weights.items() if weight is not None
    }
    if loss != "preset":
        overrides["kind"] = loss
    return replace(preset, **overrides)


def read_masks(sources: Sequence[Tensor | str] | None) -> list[Tensor] | None:
    """The masks as gray images 1×1×H×W in [0, 1]."""
    if sources is None:
        return None
    return [resolve_image(source)[:1].mean(1, keepdim=True) for source in sources]


def check_style_shares(
    style_images: Sequence[Tensor],
    mix: Sequence[float] | None,
    masks: Sequence[Tensor] | None,
    preset: StylePreset,
) -> list[float]:
    """The share of each style.

    Raises SightlineError where styles, shares, masks and the kind of loss don't fit together.
    """
    count = len(style_images)
    if count == 0:
        raise SightlineError("styles is empty; give one picture at least")
    shares = list(mix) if mix is not None else [1.0] * count
    if len(shares) != count or min(shares) < 0 or sum(shares) <= 0:
        raise SightlineError(
            f"mix is {tuple(shares)}; it must be one share for each of the {count} styles,"
            " none below 0 and not all 0"
        )
    if masks is not None:
        check_masks(masks, count)
    if preset.kind == "sliced" and (count > 1 or masks is not None):
        raise SightlineError(
            "loss='sliced' takes one style and no masks; choose 'gram' or 'w2' to mix styles"
        )
    return shares


def check_masks(masks: Sequence[Tensor], style_count: int) -> None:
    """Raises SightlineError where a style has no mask, or one that is black everywhere."""
    if len(masks) != style_count:
        raise SightlineError(
            f"{len(masks)} masks were given for {style_count} styles; each style needs one"
        )
    for number, mask in enumerate(masks, start=1):
        if float(mask.max()) <= 0:
            raise SightlineError(
                f"mask {number} is black everywhere; it must be white where its style should be"
            )


# ── optimization ──


@dataclass(frozen=True)
class OptimizationSettings:
    """How an image is optimized.

    Attributes:
        stages: The sizes, the last of which is the photograph's, with their steps.
        start: What the first stage starts from.
        algorithm: "lbfgs" or "adam".
        lr: The step size, None for the algorithm's default.
        callback: Called after every step.
    """

    stages: Sequence[Stage]
    start: StartName
    algorithm: OptimizerName
    lr: float | None
    callback: Callback | None


def transfer_style(
    builder: StyleLossBuilder, photo: Tensor, settings: OptimizationSettings, seed: int
) -> StyleTransfer:
    """Optimizes one image 1×3×H×W and measures its losses."""
    size = (photo.shape[2], photo.shape[3])
    tile_side = builder.choose_tile_side(size)  # Refuses what is too large before the first step.
    stages = drop_stages_with_small_styles(settings.stages, builder)
    first_image = make_first_image(photo, settings.start, stages[0].size, seed)
    lr = settings.lr
    if lr is None:
        lr = DEFAULT_LEARNING_RATES[settings.algorithm]
    stage_optimizer = StageOptimizer(
        settings.algorithm, lr, builder.choose_pair_count(size), FREQUENCY_FALLOFF
    )
    run = optimize_coarse_to_fine(
        builder.model,
        builder.build_objective,
        first_image.to(builder.model.device),
        stages,
        stage_optimizer,
        average=settings.algorithm == "adam",
        callback=settings.callback,
    )
    return measure_transfer(builder, run, len(stages), tile_side)


def drop_stages_with_small_styles(
    stages: Sequence[Stage], builder: StyleLossBuilder
) -> list[Stage]:
    """The stages without those for which a style has a single position in its deepest layer.

    The last stage, at the size asked for, always remains.
    """
    usable = [stage for stage in stages[:-1] if builder.has_large_enough_styles(stage.size)]
    return [*usable, stages[-1]]


def make_first_image(photo: Tensor, start: StartName, size: ImageSize, seed: int) -> Tensor:
    """The image 1×3×H×W that the optimization starts from."""
    if start == "content":
        return resize_bicubic(photo, size)
    return make_gray_noise(size, seed)


def make_gray_noise(size: tuple[int, int], seed: int) -> Tensor:
    """Gray with Gaussian noise, 1×3×H×W in [0, 1]."""
    noise = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(seed))
    return (0.5 + 0.1 * noise).clamp(0, 1)


# ── colours ──


def recolor_style(style_image: Tensor, photo: Tensor, color: ColorMode) -> Tensor:
    """The style with the colours that are to be transferred."""
    if color == "match":
        return match_colors(style_image, photo)
    if color == "luminance":
        return match_luminance(style_image, photo)
    return style_image


def restore_photo_colors(result: Tensor, photo: Tensor, color: ColorMode) -> Tensor:
    """The result with the photograph's colours, where only luminance was to change."""
    return copy_photo_colors(result, photo) if color == "luminance" else result
