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

from ...borders import borders
from ...errors import SightlineError
from ...model import Model
from ...objective import Objective
from ...paint import Brush, Size, Stage, paint, resized, stages
from ...painting import moments_of
from ...perceptual import Kind, Layers, layers_of
from ...pooling import average_pooling
from ...presets import Preset
from ...receptive import receptive_field
from ...spectrum import spectrum_of
from ...zoo import load
from .easel import Easel
from .order import Maker, Order

HISTORY = 20  # of L-BFGS, as in DeepTextures
LEAST = 48  # pixels of the exemplar where a texture is begun: what is large must be laid out while the windows see it whole


def by_statistics(kind: Kind) -> Maker:
    """The maker whose loss is of this kind, each layer's counted relative to the exemplar's own energy."""

    def make(order: Order) -> Tensor:
        exemplar, generator = order.exemplar[None], order.generator
        stride = stride_of(order)
        preset = Preset(0.0, 1.0, 0, kind, relative=True)
        scale = math.sqrt(exemplar[0, 0].numel() / math.prod(order.size))  # the exemplar stays at its own size at the end
        easel = Easel(
            order.model, None, [exemplar], Layers((), order.layers), preset, [1.0],
            scale=scale, memory=order.memory, history=HISTORY, seed=order.seed,
        )  # fmt: skip
        mode = continued(easel, order)
        plan = stages(order.size, order.steps, least=max(LEAST, round(LEAST * min(order.size) / min(exemplar.shape[-2:]))))
        plan = periods(plan, stride) if order.tileable else plan
        first = noise(exemplar, plan[0].size, generator).to(order.model.device)
        enlarge = around(generator) if order.tileable else None
        with average_pooling() if order.average else nullcontext(), borders(mode) if mode else nullcontext():
            aim = aims(easel, order.spectrum, mirrored=mode is not None)
            done = paint(order.model, aim, first, plan, Brush("lbfgs", 1.0, HISTORY), enlarge=enlarge, callback=order.callback)
        return done.image[0].cpu()

    return make


def aims(easel: Easel, spectrum: float, *, mirrored: bool) -> Callable[[Size], Objective]:
    """The objective at a size: the statistics of the exemplar, which may go on in its mirror image, and its spectrum if it is wanted."""

    def aim(size: Size) -> Objective:
        with borders("reflect") if mirrored else nullcontext():
            statistics = easel.objective(size)
        if not spectrum:
            return statistics
        return statistics + spectrum * spectrum_of(easel.fitted(easel.styles[0], size).to(easel.model.device))

    return aim


def continued(easel: Easel, order: Order) -> Literal["circular", "reflect"] | None:
    """How the network sees the picture's borders: its other side if it shall tile, else its mirror image; only a picture in tiles has its own
    zeros. They count in the moments: a frame grew along the borders, and what it took was missing in the middle."""
    if easel.tile(order.size) is None:
        return "circular" if order.tileable else "reflect"
    if order.tileable:
        raise SightlineError(
            f"{easel.need(order.size)}; a neural texture that continues across its edges is made in one piece: raise memory, lower side, "
            "or leave out tileable and it is made in tiles"
        )
    return None


def stride_of(order: Order) -> int:
    """The stride in pixels of the deepest layer; raises SightlineError where the exemplar has fewer than two places there."""
    stride = max(receptive_field(order.model, name).stride[0] for name in order.layers)
    if min(order.exemplar.shape[-2:]) < 2 * stride:
        height, width = order.exemplar.shape[-2:]
        raise SightlineError(
            f"the exemplar is {height}×{width} pixels, which the deepest layer, of stride {stride}, sees as a single place; "
            f"it needs {2 * stride}×{2 * stride} or more, or shallower layers"
        )
    return stride


def periods(plan: Sequence[Stage], stride: int) -> list[Stage]:
    """The stages before the last at whole multiples of the stride, where the network sees a torus without a joint."""
    return [replace(stage, size=(whole(stage.size[0], stride), whole(stage.size[1], stride))) for stage in plan[:-1]] + [plan[-1]]


def whole(length: int, stride: int) -> int:
    """The multiple of the stride that is nearest to a length, at least twice the stride."""
    return max(2, round(length / stride)) * stride


def around(generator: torch.Generator) -> Callable[[Tensor, Size], Tensor]:
    """Enlarges a picture that tiles, seeing its other side beyond its borders, and shifts it round itself by a random way. A torus has no
    origin, but the network's strides have, and leave a faint grid: so it does not fall on the same pixels at each size. What is of that size stays."""

    def enlarge(image: Tensor, size: Size) -> Tensor:
        if image.shape[-2:] == size:
            return image
        height, width = size
        grown = resized(image.repeat(1, 1, 3, 3), (3 * height, 3 * width))[..., height : 2 * height, width : 2 * width]
        down, right = (int(torch.randint(length, (1,), generator=generator)) for length in size)
        return grown.roll((down, right), (2, 3))

    return enlarge


def noise(exemplar: Tensor, size: Size, generator: torch.Generator) -> Tensor:
    """Noise with the mean and deviation of the exemplar's colours: 1×3×H×W in [0, 1]."""
    mean, deviation = exemplar.mean((2, 3), keepdim=True), exemplar.std((2, 3), keepdim=True)
    return (mean + deviation * torch.randn(1, 3, *size, generator=generator)).clamp(0, 1)


# ── measures ──


def gram_error(model: Model, layers: tuple[str, ...], picture: Tensor, exemplar: Tensor) -> dict[str, float]:
    """|G − A|²/|A|² by layer, of the Gram matrices of two images 1×3×H×W: 0 for the same statistics, 1 for gray."""
    with borders("reflect"):
        found, wanted = (moments_of(model, layers, one.to(model.device), None) for one in (picture, exemplar))
    return {name: float((found[name].gram - wanted[name].gram).square().sum() / wanted[name].gram.square().sum()) for name in layers}


def held_out(model: Model, used: tuple[str, ...], most: int = 3) -> tuple[str, ...]:
    """Layers with places that a texture was not made for, spread between those that it was."""
    names = {model.layer(name).removesuffix(":in") for name in used}
    deepest = max(list(model.layers).index(name) for name in names)
    free = [name for name, layer in list(model.layers.items())[:deepest] if layer.spatial and name not in names and "Conv" in layer.kind]
    if not free:
        return ()
    return tuple(dict.fromkeys(free[round(index)] for index in torch.linspace(0, len(free) - 1, min(most, len(free))).tolist()))


@cache
def judge(name: str) -> Model:
    """A network that the texture was not made by: the embedded one, or for its own textures the same one untrained."""
    return load("sightnet", weights="random", device="cpu") if name == "sightnet" else load("sightnet", device="cpu")


def judged(model: Model, layers: tuple[str, ...], pictures: Tensor, exemplars: Tensor, count: int) -> dict[str, list[float]]:
    """Mean Gram error of each picture in layers that were held out, and in another network's layers."""
    if not layers:
        return {}
    other = judge(str(model.recipe.get("model", "")))
    asked = {"held_out": (model, held_out(model, layers)), "other_network": (other, layers_of(other).style)}
    found: dict[str, list[float]] = {}
    for key, (network, names) in asked.items():
        errors = [gram_error(network, names, picture[None], exemplars[index // count][None]) for index, picture in enumerate(pictures)]
        found[key] = [sum(error.values()) / max(len(error), 1) for error in errors]
    return found
