"""Texture from a network's statistics: noise that is changed until its features are distributed as the exemplar's
(Gatys 2015: Gram matrices; Heitz 2021: sliced distributions), and measures of any texture by layers that it was not made for."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
from torch import Tensor

from ...borders import borders
from ...errors import SightlineError
from ...model import Model
from ...objective import Objective
from ...paint import Brush, Size, paint, stages
from ...painting import moments_of
from ...perceptual import Kind, Layers, layers_of
from ...pooling import average_pooling
from ...presets import Preset
from ...spectrum import spectrum_of
from ...zoo import load
from .easel import Easel
from .order import Maker, Order

HISTORY = 20  # of L-BFGS, as in DeepTextures
LEAST = 48  # pixels of the exemplar where a texture is begun: what is large must be laid out while the windows see it whole


def by_statistics(kind: Kind) -> Maker:
    """The maker whose loss is of this kind, each layer's counted relative to the exemplar's own energy."""

    def make(order: Order) -> Tensor:
        exemplar = order.exemplar[None]
        preset = Preset(0.0, 1.0, 0, kind, relative=True)
        scale = math.sqrt(exemplar[0, 0].numel() / math.prod(order.size))  # the exemplar stays at its own size at the end
        easel = Easel(order.model, None, [exemplar], Layers((), order.layers), preset, [1.0], scale=scale, history=HISTORY, seed=order.seed)
        plan = stages(order.size, order.steps, least=max(LEAST, round(LEAST * min(order.size) / min(exemplar.shape[-2:]))))
        first = noise(exemplar, plan[0].size, order.generator).to(order.model.device)
        with average_pooling() if order.average else nullcontext(), edges(easel, order):
            done = paint(order.model, aims(easel, order), first, plan, Brush("lbfgs", 1.0, HISTORY), callback=order.callback)
        return done.image[0].cpu()

    return make


def aims(easel: Easel, order: Order) -> Callable[[Size], Objective]:
    """The objective at a size: the statistics, and the spectrum if it is wanted."""

    def aim(size: Size) -> Objective:
        with borders("reflect") if easel.tile(size) is None else nullcontext():
            statistics = easel.objective(size)
        if not order.spectrum:
            return statistics
        return statistics + order.spectrum * spectrum_of(easel.fitted(easel.styles[0], size).to(order.model.device))

    return aim


def edges(easel: Easel, order: Order) -> AbstractContextManager[object]:
    """How the network sees the picture's borders: its other side if it shall tile, else its mirror image. Zeros, which the network would
    add, count in the moments: a frame grew along the borders, and what it took was missing in the middle."""
    if easel.tile(order.size) is None:
        return borders("circular" if order.tileable else "reflect")
    if order.tileable:
        raise SightlineError(f"{easel.need(order.size)}; a neural texture that tiles is made in one piece: lower side, or tileable=False")
    return nullcontext()


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
