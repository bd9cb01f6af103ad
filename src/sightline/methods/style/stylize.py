"""Style transfer in one pass of a trained style network (Johnson 2016; Dumoulin 2017)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sightline.generators.apply import restyle_images
from sightline.generators.checkpoint import (
    FixedStyleNetwork,
    normalize_style_weights,
    parse_style_blend,
    read_style_network,
)
from sightline.images.io.library import PAINTINGS_FOLDER
from sightline.images.io.pictures import read
from sightline.images.plotting.captioned_rows import FigureRow
from sightline.images.plotting.figures import PictureRows
from sightline.images.plotting.maps import make_contact_sheet
from sightline.images.transforms import cover_center
from sightline.models.model import Model
from sightline.optim.perceptual.layers import PerceptualLayers, choose_perceptual_layers
from sightline.optim.perceptual.losses import compute_content_loss, compute_gram, compute_gram_loss
from sightline.registry.method import register_method
from sightline.registry.result import Result

SHIPPED_NETWORK = "painters"

MAX_SHEET_COLUMNS = 4
STYLIZED_TILE_SIDE = 200  # pixels

# In place of a style loss of zero, which can't be divided by.
MIN_STYLE_LOSS = 1e-12

GramsByLayer = dict[str, Tensor]


@register_method(
    chapter="artistic",
    title="Feed-forward style networks",
    question="Can a network learn to paint, once for all photographs?",
    reading="The photograph, then the same in each style, one pass of one small network each. Only "
    "the scale and shift of its instance norms differ between styles. The style loss measures how "
    "far the result's Gram matrices are from the painting's, in the layers of the model.",
    caution="The network was trained on the losses of another network than the one that measures "
    "here. It has learned the strokes and colours of a painting, not its subject, and applies them "
    "everywhere in the same way.",
)
def stylize(
    model: Model, image: Tensor, *, painter: str | Path = "painters", styles: tuple[str, ...] = ()
) -> Result:
    """Restyles an image in one pass of a trained style network, and measures content and style.

    `values["image"]` is N×styles×3×H×W in [0, 1]; `["names"]` are the styles; `["content"]`,
    N×styles, is the mean squared difference between the result's and the photograph's features in
    the content layers of the model. For the shipped network, `["style_before"]` and
    `["style_after"]`, N×styles, are the style losses of the photograph and of the result: the mean
    over the style layers of E = Σ(G − A)²/4C² to the painting (Gatys 2016, eq. 4).

    Args:
        painter: File of a style network that `sightline stylizer train` wrote, or painters, the
            one that comes with Sightline.
        styles: Names of its styles, or blends such as "scream:1,great_wave:2"; all of its styles by
            default. A network for any style (`--norm adaptive`) takes image files, too.
    """
    style_network = read_style_network(painter, model.device)
    style_texts = styles or style_network.names
    results: list[Tensor] = []
    for text in style_texts:
        mix = style_network.make_mix(parse_style_blend(text, style_network.names))
        results.append(restyle_images(style_network, image, mix))
    stylized = torch.stack(results, 1)

    layers = choose_perceptual_layers(model)
    values: dict[str, Tensor | list[str]] = {
        "image": stylized,
        "names": list(style_texts),
        "content": measure_stylized_content(model, layers, image, stylized),
    }
    if painter == SHIPPED_NETWORK and isinstance(style_network, FixedStyleNetwork):
        photo_losses, result_losses = measure_stylized_style(model, image, style_texts, results)
        values |= {"style_before": photo_losses, "style_after": result_losses}

    figure = make_stylized_sheet(image, stylized)
    caption = describe_stylized_sheet(style_texts, values)
    pictures = [image[:1].cpu(), *stylized[0].split(1)]
    row = FigureRow("", pictures, ["the photograph", *style_texts], lead_count=1)
    figures = {"stylize": PictureRows([row], STYLIZED_TILE_SIDE)}
    return Result({"stylize": figure}, values, {"stylize": caption}, figures=figures)


@torch.no_grad()
def measure_stylized_content(
    model: Model, layers: PerceptualLayers, image: Tensor, stylized: Tensor
) -> Tensor:
    """The content loss of results N×S×3×H×W to the photographs N×3×H×W, mean over layers: N×S."""
    target = model.features(image, layers.content)
    losses_by_style: list[Tensor] = []
    for result in stylized.unbind(1):
        features = model.features(result, layers.content)
        losses = [compute_content_loss(features[layer], target[layer]) for layer in layers.content]
        losses_by_style.append(torch.stack(losses).mean(0))
    return torch.stack(losses_by_style, 1).cpu()


@torch.no_grad()
def measure_stylized_style(
    model: Model, image: Tensor, styles: Sequence[str], results: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """The style losses of photographs N×3×H×W, and of the result in each style: N×S each.

    Styles are shipped paintings or blends of them. A painting is resized and cropped to the size
    of the photograph; the Gram matrix of a blend is the weighted mean of its paintings'.
    """
    layers = choose_perceptual_layers(model)
    painting_grams: dict[str, GramsByLayer] = {}
    photo_grams = compute_style_grams(model, layers, image)
    photo_losses: list[Tensor] = []
    result_losses: list[Tensor] = []

    for text, result in zip(styles, results, strict=True):
        shares = normalize_style_weights(parse_style_blend(text))
        for name in shares:
            if name not in painting_grams:
                painting = read(PAINTINGS_FOLDER / f"{name}.jpg")
                covering = cover_center(painting, *image.shape[-2:])
                painting_grams[name] = compute_style_grams(model, layers, covering)
        target = {layer: blend_grams(painting_grams, shares, layer) for layer in layers.style}
        result_grams = compute_style_grams(model, layers, result)
        photo_losses.append(average_gram_losses(photo_grams, target))
        result_losses.append(average_gram_losses(result_grams, target))

    return torch.stack(photo_losses, 1).cpu(), torch.stack(result_losses, 1).cpu()


def compute_style_grams(model: Model, layers: PerceptualLayers, image: Tensor) -> GramsByLayer:
    """The Gram matrices N×C×C of each style layer, in double precision, on the processor.

    Their squares overflow single precision for a network whose random weights make large features.
    """
    features_by_layer = model.features(image, layers.style)
    return {
        name: compute_gram(features).cpu().double() for name, features in features_by_layer.items()
    }


def blend_grams(
    grams_by_name: Mapping[str, GramsByLayer], shares: Mapping[str, float], layer: str
) -> Tensor:
    """The sum of a layer's Gram matrices, weighted by the share of each name in `shares`."""
    terms = [share * grams_by_name[name][layer] for name, share in shares.items()]
    return torch.stack(terms).sum(0)


def average_gram_losses(grams: GramsByLayer, target: GramsByLayer) -> Tensor:
    """Gatys' E to the target, mean over layers: N."""
    losses = [compute_gram_loss(grams[layer], target[layer]) for layer in target]
    return torch.stack(losses).mean(0)


def make_stylized_sheet(image: Tensor, stylized: Tensor) -> Tensor:
    """A figure of photographs N×3×H×W, each followed by its results, N×S×3×H×W in all."""
    columns = min(MAX_SHEET_COLUMNS, 1 + stylized.shape[1])
    sheets: list[Tensor] = []
    for photo, results in zip(image, stylized, strict=True):
        pictures = torch.cat([photo[None].cpu(), results])
        sheets.append(make_contact_sheet(pictures, columns=columns))
    return make_contact_sheet(torch.cat(sheets), columns=1, gap=8)


def describe_stylized_sheet(styles: Sequence[str], values: Mapping[str, Tensor | list[str]]) -> str:
    """The caption: the pictures in reading order, and the style losses where they are known."""
    text = (
        f"The photograph, then in reading order: {', '.join(styles)};"
        " each is one pass of the network."
    )
    photo_losses = values.get("style_before")
    result_losses = values.get("style_after")
    if not isinstance(photo_losses, Tensor) or not isinstance(result_losses, Tensor):
        return text
    shares = (result_losses / photo_losses.clamp_min(MIN_STYLE_LOSS)).mean(0).tolist()
    share_texts = [f"{style} {share:.0%}" for style, share in zip(styles, shares, strict=True)]
    return (
        f"{text} Style loss of the result as a share of the photograph's,"
        f" measured in this network: {', '.join(share_texts)}."
    )
