"""The layers of a network that content and style are read from."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sightline.errors import SightlineError
from sightline.images.transforms import limit_short_side
from sightline.models.layers.feature_maps import describe_views, find_view_layers
from sightline.models.layers.placement import find_feature_layout
from sightline.models.model import Model
from sightline.models.weights.known_input import format_rounded_values

# The first layer's variance may differ from that of training by this factor. Published networks
# that are given images at the wrong scale differ by a factor of 57 or 255 in standard deviation.
MAX_VARIANCE_RATIO = 100.0

# An image of a smaller standard deviation is too flat to judge weak activations by.
FLAT_PICTURE_DEVIATION = 0.05

# A channel counts as dead in training if its variance is below this share of the largest one.
DEAD_VARIANCE_SHARE = 1e-3

MAX_STYLE_LAYERS = 5


@torch.no_grad()
def refuse_wrong_input_scale(model: Model, picture: Tensor) -> None:
    """Raises SightlineError if the network was trained on images of another scale.

    The activations of the first convolution for an image N×3×H×W are compared with the statistics
    of the batch norm after it; ten times as large, or a tenth, is refused. A network without such a
    batch norm passes.
    """
    first_layers = find_first_normalized_convolution(model)
    if first_layers is None:
        return
    convolution_name, trained_variance = first_layers
    small_picture = limit_short_side(picture, 2 * model.size).to(model.device)
    features = model.run(small_picture, [convolution_name])
    activations = features[convolution_name].float()
    if activations.shape[1] != len(trained_variance):
        return

    is_live = trained_variance > DEAD_VARIANCE_SHARE * trained_variance.max()
    variance = activations.var((0, 2, 3))
    ratios = variance[is_live] / trained_variance[is_live]
    ratio = float(ratios.median())

    is_flat = float(picture.std()) <= FLAT_PICTURE_DEVIATION
    is_too_strong = ratio > MAX_VARIANCE_RATIO
    is_too_weak = ratio < 1 / MAX_VARIANCE_RATIO and not is_flat
    if is_too_strong or is_too_weak:
        mean = format_rounded_values(model.mean.flatten().tolist())
        std = format_rounded_values(model.std.flatten().tolist())
        raise SightlineError(
            f"{model.name} was trained on images of another scale: the activations of its first "
            f"layer are {ratio**0.5:.2g} times as large as in training; its mean is {mean} and its "
            f"std {std}: load it with the mean= and std= of its training"
        )


def find_first_normalized_convolution(model: Model) -> tuple[str, Tensor] | None:
    """The first convolution's name and its variance in training, by the batch norm after it.

    Returns None without a batch norm, or with one that was never trained or is folded into the
    convolution.
    """
    names = [layer.name for layer in model.layers.values() if not layer.step]
    is_convolution = [isinstance(model.module(name), nn.Conv2d) for name in names]
    if True not in is_convolution[:-1]:
        return None
    first = is_convolution.index(True)
    norm = model.module(names[first + 1])
    if not isinstance(norm, nn.BatchNorm2d):
        return None
    if norm.running_mean is None or norm.running_var is None:
        return None
    has_initial_mean = not norm.running_mean.any()
    has_initial_variance = bool((norm.running_var == 1).all())
    if has_initial_mean and has_initial_variance:
        return None
    return names[first], norm.running_var


@dataclass(frozen=True)
class PerceptualLayers:
    """The layers that content and style are read from."""

    content: tuple[str, ...]
    style: tuple[str, ...]


# A family of networks is recognized by its layer names.
FAMILY_LAYERS = (
    # VGG: those of Gatys 2016, after the ReLU as in his code.
    PerceptualLayers(("relu4_2",), ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")),
    # SqueezeNet: of four sets that were tried, the one with the longest strokes.
    PerceptualLayers(("fire4",), ("relu1", "fire3", "fire5", "fire7", "fire9")),
    # The embedded network.
    PerceptualLayers(("relu3_1",), ("relu1", "relu2_1", "relu3_1", "relu4_1")),
)


def choose_perceptual_layers(model: Model) -> PerceptualLayers:
    """The layers tuned for the network's family.

    For other networks, the last map of each of the first five resolutions for style, and the middle
    one of these for content. Raises SightlineError for a network without maps of the image.
    """
    for family in FAMILY_LAYERS:
        names = (*family.content, *family.style)
        if all(name in model.layers or name in model.aliases for name in names):
            return family

    style_layers = find_last_maps(model)
    if not style_layers:
        views = find_view_layers(model)
        if views:
            raise SightlineError(describe_views(model, max(views.values())))
        raise SightlineError(
            f"{model.name} has no layer with positions; "
            "style and content need a convolutional network"
        )
    return PerceptualLayers((style_layers[len(style_layers) // 2],), style_layers)


def require_image_maps(model: Model, names: Sequence[str]) -> None:
    """Raises SightlineError for a layer whose output is no map N×C×H×W of the image.

    Statistics are taken over the positions of each channel. Tokens N×T×C and maps with their
    channels last, N×H×W×C as Swin gives them, would have theirs over the wrong axes.
    """
    if not names:
        return
    layers = [model.layer(name) for name in names]
    images, outputs = run_random_images(model, layers)
    for name, layer in zip(names, layers, strict=True):
        output = outputs[layer]
        layout = None
        if output.ndim > 0 and len(output) == len(images):
            layout = find_feature_layout(model, layer, output.shape, images.shape)
        if layout is not None and layout.order == "NCHW":
            continue
        shape = "×".join(map(str, output.shape[1:]))
        proposals = find_last_maps(model)
        proposal = f"; choose layers such as {', '.join(proposals)}" if proposals else ""
        raise SightlineError(
            f"style and content are compared in maps of the image, channels×height×width; {name} "
            f"gives {shape} for an image of {images.shape[2]}×{images.shape[3]}{proposal}"
        )


def find_last_maps(model: Model) -> tuple[str, ...]:
    """The last map N×C×H×W of the image in each of the first five resolutions.

    A shape alone does not tell: tables of positions and maps with their channels last have rows and
    columns too.
    """
    candidates = [layer for layer in model.layers.values() if layer.is_spatial]
    is_map: dict[str, bool] = {}
    while True:
        last_by_height = {layer.shape[1]: layer.name for layer in candidates}
        chosen = tuple(last_by_height.values())[:MAX_STYLE_LAYERS]
        unknown = [name for name in chosen if name not in is_map]
        if not unknown:
            return chosen
        is_map |= find_image_maps(model, unknown)
        candidates = [layer for layer in candidates if is_map.get(layer.name, True)]


def find_image_maps(model: Model, names: Sequence[str]) -> dict[str, bool]:
    """Which of the layers give each of two random images maps N×C×H×W of its own."""
    images, outputs = run_random_images(model, names)
    is_map: dict[str, bool] = {}
    for name in names:
        output = outputs[name]
        is_map[name] = False
        if len(output) == len(images) and not torch.equal(output[0], output[1]):
            layout = find_feature_layout(model, name, output.shape, images.shape)
            is_map[name] = layout is not None and layout.order == "NCHW"
    return is_map


@torch.no_grad()
def run_random_images(model: Model, names: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """Two images and the layers' outputs for them; the images are wide where the network lets them.

    Attention among T tokens gives T×T numbers, which are no map of an image that is not square.
    """
    height, width = model.image_size
    generator = torch.Generator().manual_seed(0)
    wide = torch.rand(2, model.channels, height, 2 * width, generator=generator).to(model.device)
    try:
        return wide, model.run(wide, names)
    except SightlineError:
        square = wide[..., :width]
        return square, model.run(square, names)
