"""Texture from a network's statistics: noise that is changed until its features are distributed as the exemplar's
(Gatys 2015: Gram matrices; Heitz 2021: sliced distributions), and measures of any texture by layers that it was not made for."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.transforms import ImageSize, resize_bicubic
from sightline.methods.style.setup import StyleLossBuilder
from sightline.methods.texture.request import TextureMaker, TextureRequest
from sightline.models.model import Model
from sightline.models.overrides.average_pooling import AveragePoolingMode
from sightline.models.overrides.padding import BorderPaddingMode
from sightline.models.tracing.receptive_field import receptive_field
from sightline.models.zoo.load import load
from sightline.optim.multiscale import Stage, StageOptimizer, optimize_coarse_to_fine, plan_stages
from sightline.optim.objectives.objective import Objective
from sightline.optim.objectives.spectrum import build_spectrum_objective
from sightline.optim.perceptual.layers import PerceptualLayers, choose_perceptual_layers
from sightline.optim.perceptual.losses import StyleDistanceKind
from sightline.optim.perceptual.presets import StylePreset
from sightline.optim.perceptual.style_loss import compute_image_moments

TEXTURE_HISTORY = 20  # of L-BFGS, as in DeepTextures

FIRST_EXEMPLAR_SIDE = 48  # pixels of the exemplar where a texture is begun: what is large must be laid out while the windows see it whole


def make_statistics_maker(kind: StyleDistanceKind) -> TextureMaker:
    """The maker whose loss is of this kind, each layer's counted relative to the exemplar's own energy."""

    def make(order: TextureRequest) -> Tensor:
        exemplar, generator = order.exemplar[None], order.generator
        stride = find_texture_stride(order)
        preset = StylePreset(0.0, 1.0, 0, kind, relative=True)
        scale = math.sqrt(
            exemplar[0, 0].numel() / math.prod(order.size)
        )  # the exemplar stays at its own size at the end
        easel = StyleLossBuilder(
            order.model, None, [exemplar], PerceptualLayers((), order.layers), preset, [1.0],
            style_scale=scale, memory_gb=order.memory_gb, history_size=TEXTURE_HISTORY, seed=order.seed,
        )  # fmt: skip
        mode = choose_border_mode(easel, order)
        plan = plan_stages(
            order.size,
            order.steps,
            min_side=max(
                FIRST_EXEMPLAR_SIDE,
                round(FIRST_EXEMPLAR_SIDE * min(order.size) / min(exemplar.shape[-2:])),
            ),
        )
        plan = align_stages_to_stride(plan, stride) if order.tileable else plan
        first = make_exemplar_noise(exemplar, plan[0].size, generator).to(order.model.device)
        enlarge = make_torus_enlarger(generator) if order.tileable else None
        with (
            AveragePoolingMode() if order.use_average_pooling else nullcontext(),
            BorderPaddingMode(mode) if mode else nullcontext(),
        ):
            aim = make_texture_objective(easel, order.spectrum_weight, mirrored=mode is not None)
            done = optimize_coarse_to_fine(
                order.model,
                aim,
                first,
                plan,
                StageOptimizer("lbfgs", 1.0, TEXTURE_HISTORY),
                enlarge=enlarge,
                callback=order.callback,
            )
        return done.image[0].cpu()

    return make


def make_texture_objective(
    builder: StyleLossBuilder, spectrum_weight: float, *, mirrored: bool
) -> Callable[[ImageSize], Objective]:
    """The objective at a size: the statistics of the exemplar, which may go on in its mirror image, and its spectrum if it is wanted."""

    def aim(size: ImageSize) -> Objective:
        with BorderPaddingMode("reflect") if mirrored else nullcontext():
            statistics = builder.build_objective(size)
        if not spectrum_weight:
            return statistics
        return statistics + spectrum_weight * build_spectrum_objective(
            builder.fit_style(builder.styles[0], size).to(builder.model.device)
        )

    return aim


def choose_border_mode(
    builder: StyleLossBuilder, request: TextureRequest
) -> Literal["circular", "reflect"] | None:
    """How the network sees the picture's borders: its other side if it shall tile, else its mirror image; only a picture in tiles has its own
    zeros. They count in the moments: a frame grew along the borders, and what it took was missing in the middle."""
    if builder.choose_tile_side(request.size) is None:
        return "circular" if request.tileable else "reflect"
    if request.tileable:
        raise SightlineError(
            f"{builder.describe_memory_need(request.size)}; a neural texture that continues across its edges is made in one piece: raise memory, lower side, "
            "or leave out tileable and it is made in tiles"
        )
    return None


def find_texture_stride(request: TextureRequest) -> int:
    """The stride in pixels of the deepest layer; raises SightlineError where the exemplar has fewer than two places there."""
    stride = max(receptive_field(request.model, name).stride[0] for name in request.layers)
    if min(request.exemplar.shape[-2:]) < 2 * stride:
        height, width = request.exemplar.shape[-2:]
        raise SightlineError(
            f"the exemplar is {height}×{width} pixels, which the deepest layer, of stride {stride}, sees as a single place; "
            f"it needs {2 * stride}×{2 * stride} or more, or shallower layers"
        )
    return stride


def align_stages_to_stride(plan: Sequence[Stage], stride: int) -> list[Stage]:
    """The stages before the last at whole multiples of the stride, where the network sees a torus without a joint."""
    return [
        replace(
            stage,
            size=(
                round_to_multiple(stage.size[0], stride),
                round_to_multiple(stage.size[1], stride),
            ),
        )
        for stage in plan[:-1]
    ] + [plan[-1]]


def round_to_multiple(length: int, stride: int) -> int:
    """The multiple of the stride that is nearest to a length, at least twice the stride."""
    return max(2, round(length / stride)) * stride


def make_torus_enlarger(generator: torch.Generator) -> Callable[[Tensor, ImageSize], Tensor]:
    """Enlarges a picture that tiles, seeing its other side beyond its borders, and shifts it round itself by a random way. A torus has no
    origin, but the network's strides have, and leave a faint grid: so it does not fall on the same pixels at each size. What is of that size stays."""

    def enlarge(image: Tensor, size: ImageSize) -> Tensor:
        if image.shape[-2:] == size:
            return image
        height, width = size
        grown = resize_bicubic(image.repeat(1, 1, 3, 3), (3 * height, 3 * width))[
            ..., height : 2 * height, width : 2 * width
        ]
        down, right = (int(torch.randint(length, (1,), generator=generator)) for length in size)
        return grown.roll((down, right), (2, 3))

    return enlarge


def make_exemplar_noise(exemplar: Tensor, size: ImageSize, generator: torch.Generator) -> Tensor:
    """Noise with the mean and deviation of the exemplar's colours: 1×3×H×W in [0, 1]."""
    mean, deviation = exemplar.mean((2, 3), keepdim=True), exemplar.std((2, 3), keepdim=True)
    return (mean + deviation * torch.randn(1, 3, *size, generator=generator)).clamp(0, 1)


# ── measures ──


def measure_gram_error(
    model: Model, layers: tuple[str, ...], picture: Tensor, exemplar: Tensor
) -> dict[str, float]:
    """|G − A|²/|A|² by layer, of the Gram matrices of two images 1×3×H×W: 0 for the same statistics, 1 for gray."""
    with BorderPaddingMode("reflect"):
        found, wanted = (
            compute_image_moments(model, layers, one.to(model.device), None)
            for one in (picture, exemplar)
        )
    return {
        name: float(
            (found[name].gram - wanted[name].gram).square().sum() / wanted[name].gram.square().sum()
        )
        for name in layers
    }


def pick_held_out_layers(
    model: Model, used_layers: tuple[str, ...], max_layers: int = 3
) -> tuple[str, ...]:
    """Layers with places that a texture was not made for, spread between those that it was."""
    names = {model.layer(name).removesuffix(":in") for name in used_layers}
    deepest = max(list(model.layers).index(name) for name in names)
    free = [
        name
        for name, layer in list(model.layers.items())[:deepest]
        if layer.is_spatial and name not in names and "Conv" in layer.kind
    ]
    if not free:
        return ()
    return tuple(
        dict.fromkeys(
            free[round(index)]
            for index in torch.linspace(0, len(free) - 1, min(max_layers, len(free))).tolist()
        )
    )


@cache
def load_judge_network(name: str) -> Model:
    """A network that the texture was not made by: the embedded one, or for its own textures the same one untrained."""
    return (
        load("sightnet", weights="random", device="cpu")
        if name == "sightnet"
        else load("sightnet", device="cpu")
    )


def measure_held_out_errors(
    model: Model, layers: tuple[str, ...], pictures: Tensor, exemplars: Tensor, count: int
) -> dict[str, list[float]]:
    """Mean Gram error of each picture in layers that were held out, and in another network's layers."""
    if not layers:
        return {}
    other = load_judge_network(str(model.recipe.get("model", "")))
    asked = {
        "held_out": (model, pick_held_out_layers(model, layers)),
        "other_network": (other, choose_perceptual_layers(other).style),
    }
    found: dict[str, list[float]] = {}
    for key, (network, names) in asked.items():
        errors = [
            measure_gram_error(network, names, picture[None], exemplars[index // count][None])
            for index, picture in enumerate(pictures)
        ]
        found[key] = [sum(error.values()) / max(len(error), 1) for error in errors]
    return found
