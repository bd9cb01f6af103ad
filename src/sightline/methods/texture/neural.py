"""Texture from the statistics of a network's features, and measures in layers held out from it.

Noise is optimized until its features are distributed as the exemplar's (Gatys 2015: Gram matrices;
Heitz 2021: sliced distributions).
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.transforms import ImageSize, cover_center, resize_bicubic
from sightline.methods.style.setup import StyleLossBuilder
from sightline.methods.texture.request import TextureRequest
from sightline.models.model import Model
from sightline.models.overrides.average_pooling import AveragePoolingMode
from sightline.models.overrides.padding import BorderPaddingMode
from sightline.models.tracing.receptive_field import receptive_field
from sightline.models.zoo.load import load
from sightline.models.zoo.names import EMBEDDED_NETWORKS
from sightline.optim.multiscale import Stage, StageOptimizer, optimize_coarse_to_fine, plan_stages
from sightline.optim.objectives.objective import Objective
from sightline.optim.objectives.spectrum import build_spectrum_objective
from sightline.optim.perceptual.layers import PerceptualLayers, choose_perceptual_layers
from sightline.optim.perceptual.losses import StyleDistanceKind
from sightline.optim.perceptual.presets import StylePreset
from sightline.optim.perceptual.transfer_loss import compute_image_moments
from sightline.optim.tiled import reaches_layers

TEXTURE_HISTORY_SIZE = 20  # of L-BFGS, as in DeepTextures

# Short side of the exemplar at the first size, in pixels. Large structures must be laid out while
# the layers' receptive fields span them.
FIRST_EXEMPLAR_SIDE = 48

BorderMode = Literal["circular", "reflect"]


def synthesize_from_statistics(request: TextureRequest, kind: StyleDistanceKind) -> Tensor:
    """Optimizes noise from coarse to fine until its features' statistics are the exemplar's: 3×H×W.

    Each layer's loss counts relative to the exemplar's own energy there (departure: Gatys 2015
    weighs all layers equally). Raises SightlineError for an exemplar too small for the layers and
    for a picture that exceeds the memory.
    """
    exemplar = fit_exemplar(request.model, request.layers, request.exemplar[None], request.size)
    request = replace(request, exemplar=exemplar[0])
    generator = request.generator
    builder = make_loss_builder(request, kind)
    stages = plan_texture_stages(request)
    border_mode = choose_border_mode(builder, request)
    noise = make_exemplar_noise(exemplar, stages[0].size, generator).to(request.model.device)
    enlarge = make_torus_enlarger(generator) if request.tileable else None

    pooling = AveragePoolingMode() if request.use_average_pooling else nullcontext()
    padding = BorderPaddingMode(border_mode) if border_mode else nullcontext()
    with pooling, padding:
        result = optimize_coarse_to_fine(
            request.model,
            make_texture_objective(builder, request.spectrum_weight, mirrored=bool(border_mode)),
            noise,
            stages,
            StageOptimizer("lbfgs", 1.0, TEXTURE_HISTORY_SIZE),
            enlarge=enlarge,
            callback=request.callback,
        )
    return result.image[0].cpu()


def make_loss_builder(request: TextureRequest, kind: StyleDistanceKind) -> StyleLossBuilder:
    """The builder of the loss, with the exemplar as the style and no content."""
    # At the final size the exemplar keeps its own size.
    exemplar_pixels = request.exemplar[0].numel()
    style_scale = math.sqrt(exemplar_pixels / math.prod(request.size))
    return StyleLossBuilder(
        request.model,
        content=None,
        styles=[request.exemplar[None]],
        layers=PerceptualLayers((), request.layers),
        preset=StylePreset(0.0, 1.0, 0, kind, relative=True),
        style_shares=[1.0],
        style_scale=style_scale,
        memory_gb=request.memory_gb,
        history_size=TEXTURE_HISTORY_SIZE,
        seed=request.seed,
    )


def fit_exemplar(model: Model, layers: Sequence[str], exemplar: Tensor, size: ImageSize) -> Tensor:
    """The exemplar 1×3×h×w, at the picture's size where the network does not take its own."""
    if reaches_layers(model, layers, (exemplar.shape[-2], exemplar.shape[-1])):
        return exemplar
    return cover_center(exemplar, *size)


def fit_to_network(model: Model, layers: Sequence[str], image: Tensor) -> Tensor:
    """An image 1×3×h×w, at the network's own size where the network does not take the image's."""
    if reaches_layers(model, layers, (image.shape[-2], image.shape[-1])):
        return image
    return cover_center(image, *model.image_size)


def plan_texture_stages(request: TextureRequest) -> list[Stage]:
    """The sizes to synthesize at, coarse to fine, with their steps.

    Raises SightlineError where the exemplar has fewer than two positions in the deepest layer.
    """
    stride = find_texture_stride(request)
    exemplar_side = min(request.exemplar.shape[-2:])
    size_ratio = min(request.size) / exemplar_side
    first_side = round(FIRST_EXEMPLAR_SIDE * size_ratio)
    min_side = max(FIRST_EXEMPLAR_SIDE, first_side)

    stages = plan_stages(request.size, request.steps, min_side=min_side)
    if not reaches_layers(request.model, request.layers, stages[0].size):
        stages = stages[-1:]  # a network of one size
    if request.tileable:
        return align_stages_to_stride(stages, stride)
    return stages


def make_texture_objective(
    builder: StyleLossBuilder, spectrum_weight: float, *, mirrored: bool
) -> Callable[[ImageSize], Objective]:
    """The objective at each size: the exemplar's statistics and, if weighted, its spectrum.

    With `mirrored`, the exemplar continues in its mirror image beyond its borders.
    """

    def build_objective(size: ImageSize) -> Objective:
        with BorderPaddingMode("reflect") if mirrored else nullcontext():
            statistics = builder.build_objective(size)
        if not spectrum_weight:
            return statistics
        exemplar = builder.fit_style(builder.styles[0], size).to(builder.model.device)
        return statistics + spectrum_weight * build_spectrum_objective(exemplar)

    return build_objective


def choose_border_mode(builder: StyleLossBuilder, request: TextureRequest) -> BorderMode | None:
    """How layers pad the picture: with its opposite side if it tiles, else with its mirror image.

    Departure: the papers keep the network's zeros. They count in the moments: a frame grows along
    the borders, and what it takes is missing in the middle. None leaves the zeros, for a picture
    that is made in tiles. Raises SightlineError for a tileable picture that exceeds the memory.
    """
    if builder.choose_tile_side(request.size) is None:
        return "circular" if request.tileable else "reflect"
    if request.tileable:
        raise SightlineError(
            f"{builder.describe_memory_need(request.size)}; a neural texture that continues across "
            "its edges is made in one piece: raise memory, lower side, or leave out tileable and "
            "it is made in tiles"
        )
    return None


def find_texture_stride(request: TextureRequest) -> int:
    """The stride of the deepest layer in pixels.

    Raises SightlineError where the exemplar has fewer than two positions there.
    """
    stride = max(receptive_field(request.model, name).stride[0] for name in request.layers)
    height, width = request.exemplar.shape[-2:]
    min_side = 2 * stride
    if min(height, width) < min_side:
        raise SightlineError(
            f"the exemplar is {height}×{width} pixels, a single position in the deepest layer, of "
            f"stride {stride}; it needs {min_side}×{min_side} or more, or shallower layers"
        )
    return stride


def align_stages_to_stride(plan: Sequence[Stage], stride: int) -> list[Stage]:
    """The stages with all sizes but the last rounded to multiples of the stride.

    At such sizes the network sees a torus without a seam.
    """
    aligned: list[Stage] = []
    for stage in plan[:-1]:
        height = round_to_multiple(stage.size[0], stride)
        width = round_to_multiple(stage.size[1], stride)
        aligned.append(replace(stage, size=(height, width)))
    return [*aligned, plan[-1]]


def round_to_multiple(length: int, stride: int) -> int:
    """The multiple of the stride nearest to a length, at least twice the stride."""
    stride_count = max(2, round(length / stride))
    return stride_count * stride


def make_torus_enlarger(generator: torch.Generator) -> Callable[[Tensor, ImageSize], Tensor]:
    """A function that enlarges a tileable picture and shifts it at random on the torus.

    The network's strides leave a faint grid. The shift keeps it from falling on the same pixels at
    each size; on a torus it changes nothing else. A picture that has the size already stays.
    """

    def enlarge(image: Tensor, size: ImageSize) -> Tensor:
        if image.shape[-2:] == size:
            return image
        height, width = size
        # Interpolate nine copies and take the one in the middle, which has all its neighbors.
        copies = resize_bicubic(image.repeat(1, 1, 3, 3), (3 * height, 3 * width))
        enlarged = copies[..., height : 2 * height, width : 2 * width]
        down = int(torch.randint(height, (1,), generator=generator))
        right = int(torch.randint(width, (1,), generator=generator))
        return enlarged.roll((down, right), (2, 3))

    return enlarge


def make_exemplar_noise(exemplar: Tensor, size: ImageSize, generator: torch.Generator) -> Tensor:
    """Gaussian noise with the mean and deviation of the exemplar's channels: 1×C×H×W in [0, 1]."""
    mean = exemplar.mean((2, 3), keepdim=True)
    deviation = exemplar.std((2, 3), keepdim=True)
    noise = torch.randn(1, exemplar.shape[1], *size, generator=generator)
    return (mean + deviation * noise).clamp(0, 1)


# ── measures ──


def measure_gram_error(
    model: Model, layers: tuple[str, ...], picture: Tensor, exemplar: Tensor
) -> dict[str, float]:
    """|G − A|²/|A|² for each layer, of the Gram matrices of two images 1×3×H×W.

    0 for the same statistics, about 1 for gray; 0 for a layer that is silent for the exemplar.
    """
    with BorderPaddingMode("reflect"):
        moments = compute_image_moments(model, layers, picture.to(model.device), None)
        exemplar_moments = compute_image_moments(model, layers, exemplar.to(model.device), None)
    errors: dict[str, float] = {}
    for name in layers:
        # Squares of an untrained network's small statistics may be 0 in single precision.
        exemplar_gram = exemplar_moments[name].gram.double()
        squared_difference = (moments[name].gram.double() - exemplar_gram).square().sum()
        squared_size = exemplar_gram.square().sum()
        errors[name] = float(squared_difference / squared_size) if squared_size > 0 else 0.0
    return errors


def pick_held_out_layers(
    model: Model, used_layers: tuple[str, ...], max_layers: int = 3
) -> tuple[str, ...]:
    """Up to `max_layers` spatial convolutions that a texture was not made with.

    They are spread evenly over the layers above the deepest one that was used.
    """
    used_names = {model.layer(name).removesuffix(":in") for name in used_layers}
    layer_names = list(model.layers)
    deepest = max(layer_names.index(name) for name in used_names)
    candidates: list[str] = []
    for name in layer_names[:deepest]:
        layer = model.layers[name]
        if layer.is_spatial and name not in used_names and "Conv" in layer.kind:
            candidates.append(name)
    if not candidates:
        return ()
    count = min(max_layers, len(candidates))
    indices = torch.linspace(0, len(candidates) - 1, count).tolist()
    picked = [candidates[round(index)] for index in indices]
    return tuple(dict.fromkeys(picked))


@cache
def load_judge_network(name: str) -> Model:
    """A network that a texture by the network `name` was not made with.

    `sightnet_plain`; for textures of embedded networks the same architecture, untrained.
    """
    if name in EMBEDDED_NETWORKS:
        return load("sightnet_plain", weights="random", device="cpu")
    return load("sightnet_plain", device="cpu")


def measure_held_out_errors(
    model: Model, layers: tuple[str, ...], pictures: Tensor, exemplars: Tensor, count: int
) -> dict[str, list[float]]:
    """The mean Gram error of each picture in held-out layers, and in another network's layers.

    `count` pictures N·count×C×H×W belong to each of the exemplars N×C×h×w. The other network sees
    three of their bands.
    """
    if not layers:
        return {}
    judge = load_judge_network(str(model.recipe.get("model", "")))
    judges = {
        "held_out": (model, pick_held_out_layers(model, layers), (pictures, exemplars)),
        "other_network": (
            judge,
            choose_perceptual_layers(judge).style,
            (model.to_picture(pictures), model.to_picture(exemplars)),
        ),
    }
    mean_errors: dict[str, list[float]] = {}
    for key, (network, names, (judged_pictures, judged_exemplars)) in judges.items():
        mean_errors[key] = []
        for index, picture in enumerate(judged_pictures):
            fitted_picture = fit_to_network(network, names, picture[None])
            exemplar = fit_to_network(network, names, judged_exemplars[index // count][None])
            errors = measure_gram_error(network, names, fitted_picture, exemplar)
            mean_errors[key].append(sum(errors.values()) / max(len(errors), 1))
    return mean_errors
