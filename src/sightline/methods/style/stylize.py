"""Feed-forward style networks: what takes an optimizer minutes, in one pass (Johnson 2016; Dumoulin 2017)."""

from collections.abc import Mapping
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
from sightline.images.io import crop_center, read, resize_image
from sightline.images.library import PAINTINGS_FOLDER
from sightline.images.plotting.maps import make_contact_sheet
from sightline.models.model import Model
from sightline.optim.perceptual.layers import PerceptualLayers, choose_perceptual_layers
from sightline.optim.perceptual.losses import compute_content_loss, compute_gram, compute_gram_loss
from sightline.registry.method import register_method
from sightline.registry.result import Result


@register_method(
    chapter="artistic",
    title="Feed-forward style networks",
    question="Can a network learn to paint, once for all photographs?",
    reading="The photograph, then the same in each style, one pass of one small network each. Only the scale and shift of its instance norms differ from style "
    "to style. The style loss says how far the picture's Gram matrices are from the painting's, as this network's layers see them.",
    caution="The network was trained on the losses of another network than the one that measures here. It knows strokes and colours of a painting, "
    "not what is painted, and applies them everywhere alike.",
)
def stylize(
    model: Model, image: Tensor, *, painter: str | Path = "painters", styles: tuple[str, ...] = ()
) -> Result:
    """Restyles an image in one pass by a trained style network, and measures content and style with the model.

    `values["image"]` is N×styles×3×H×W; `["names"]` are the styles; `["content"]` is the mean squared difference of the content layer's
    features to the photograph's, N×styles. For the network that comes with Sightline, `["style_before"]` and `["style_after"]`, N×styles, are
    the mean over the style layers of E = Σ(G − A)²/4C² to the painting (Gatys 2016, eq. 4), for the photograph and for the picture made.

    Args:
        painter: File of a style network that `sightline stylizer train` wrote, or painters, the one that comes with Sightline.
        styles: Names of its styles, or blends such as "scream:1,great_wave:2"; all of its styles by default. A network for any style
            (`--norm adaptive`) takes files of pictures, too.
    """
    network = read_style_network(painter, model.device)
    chosen = styles or network.names
    made = torch.stack(
        [
            restyle_images(network, image, network.make_mix(parse_style_blend(style)))
            for style in chosen
        ],
        1,
    )
    layers = choose_perceptual_layers(model)
    values: dict[str, Tensor | list[str]] = {
        "image": made,
        "names": list(chosen),
        "content": measure_stylized_content(model, layers, image, made),
    }
    if painter == "painters" and isinstance(network, FixedStyleNetwork):
        before, after = measure_stylized_style(
            model, network, image, dict(zip(chosen, made.unbind(1), strict=True))
        )
        values |= {"style_before": before, "style_after": after}
    sheets = [
        make_contact_sheet(torch.cat([one[None].cpu(), several]), columns=min(4, 1 + len(chosen)))
        for one, several in zip(image, made, strict=True)
    ]
    caption = describe_stylized_sheet(chosen, values)
    return Result(
        {"stylize": make_contact_sheet(torch.cat(sheets), columns=1, gap=8)},
        values,
        {"stylize": caption},
    )


@torch.no_grad()
def measure_stylized_content(
    model: Model, layers: PerceptualLayers, image: Tensor, stylized: Tensor
) -> Tensor:
    """Content loss of N×S×3×H×W to the photographs, N×S, the mean over layers."""
    aims = model.features(image, layers.content)
    rows = [model.features(picture, layers.content) for picture in stylized.unbind(1)]
    return torch.stack(
        [
            torch.stack(
                [compute_content_loss(row[name], aims[name]) for name in layers.content]
            ).mean(0)
            for row in rows
        ],
        1,
    ).cpu()


@torch.no_grad()
def measure_stylized_style(
    model: Model, network: FixedStyleNetwork, image: Tensor, stylized: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Style loss of the photographs and of the pictures made in each style, N×S each. A painting is seen at the size of the photograph."""
    layers, (height, width) = choose_perceptual_layers(model), image.shape[-2:]
    asked = {name for style in stylized for name in parse_style_blend(style)}
    seen = {
        name: compute_style_grams(
            model,
            layers,
            crop_painting_to_fill(read(PAINTINGS_FOLDER / f"{name}.jpg"), height, width),
        )
        for name in asked
    }
    own = compute_style_grams(model, layers, image)
    before, after = list[Tensor](), list[Tensor]()
    for style, picture in stylized.items():
        shares = normalize_style_weights(parse_style_blend(style))
        target = {
            layer: torch.stack([share * seen[name][layer] for name, share in shares.items()]).sum(0)
            for layer in layers.style
        }
        for found, rows in ((own, before), (compute_style_grams(model, layers, picture), after)):
            rows.append(
                torch.stack(
                    [compute_gram_loss(found[layer], target[layer]) for layer in layers.style]
                ).mean(0)
            )
    return torch.stack(before, 1).cpu(), torch.stack(after, 1).cpu()


def compute_style_grams(model: Model, layers: PerceptualLayers, image: Tensor) -> dict[str, Tensor]:
    """The Gram matrix of each style layer."""
    return {
        name: compute_gram(features)
        for name, features in model.features(image, layers.style).items()
    }


def crop_painting_to_fill(painting: Tensor, height: int, width: int) -> Tensor:
    """The middle of a painting, height × width pixels, resized as little as that needs."""
    scale = max(height / painting.shape[2], width / painting.shape[3])
    sides = (
        max(height, round(painting.shape[2] * scale)),
        max(width, round(painting.shape[3] * scale)),
    )
    return crop_center(resize_image(painting, *sides), height, width)


def describe_stylized_sheet(styles: tuple[str, ...], values: dict[str, Tensor | list[str]]) -> str:
    """What the sheet shows, in reading order, and the style losses in words."""
    text = (
        f"The photograph, then in reading order: {', '.join(styles)}; one pass of the network each."
    )
    before, after = values.get("style_before"), values.get("style_after")
    if not (isinstance(before, Tensor) and isinstance(after, Tensor)):
        return text
    shares = [
        f"{style} {float(share):.0%}"
        for style, share in zip(styles, (after / before.clamp_min(1e-12)).mean(0), strict=True)
    ]
    return f"{text} Style loss left of the photograph's own, as this network sees it: {', '.join(shares)}."
