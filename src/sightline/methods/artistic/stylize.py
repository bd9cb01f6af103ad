"""Feed-forward style networks: what takes an optimizer minutes, in one pass (Johnson 2016; Dumoulin 2017)."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ... import image as images
from ... import render
from ...catalog import method
from ...model import Model
from ...networks.apply import restyled
from ...networks.files import PAINTINGS, Styles, blend, normalized, read_painter
from ...perceptual import Layers, content_loss, gram, gram_loss, layers_of
from ...result import Result


@method(
    title="Feed-forward style networks",
    question="Can a network learn to paint, once for all photographs?",
    reading="The photograph, then the same in each style, one pass of one small network each. Only the scale and shift of its instance norms differ from style "
    "to style. The style loss says how far the picture's Gram matrices are from the painting's, as this network's layers see them.",
    caution="The network was trained on the losses of another network than the one that measures here. It knows strokes and colours of a painting, "
    "not what is painted, and applies them everywhere alike.",
)
def stylize(model: Model, image: Tensor, *, painter: str | Path = "painters", styles: tuple[str, ...] = ()) -> Result:
    """Restyles an image in one pass by a trained style network, and measures content and style with the model.

    `values["image"]` is N×styles×3×H×W; `["names"]` are the styles; `["content"]` is the mean squared difference of the content layer's
    features to the photograph's, N×styles. For the network that comes with Sightline, `["style_before"]` and `["style_after"]`, N×styles, are
    the mean over the style layers of E = Σ(G − A)²/4C² to the painting (Gatys 2016, eq. 4), for the photograph and for the picture made.

    Args:
        painter: File of a style network that `sightline stylizer train` wrote, or painters, the one that comes with Sightline.
        styles: Names of its styles, or blends such as "scream:1,great_wave:2"; all of its styles by default. A network for any style
            (`--norm adaptive`) takes files of pictures, too.
    """
    network = read_painter(painter, model.device)
    chosen = styles or network.names
    made = torch.stack([restyled(network, image, network.mix(blend(style))) for style in chosen], 1)
    layers = layers_of(model)
    values: dict[str, Tensor | list[str]] = {"image": made, "names": list(chosen), "content": contents(model, layers, image, made)}
    if painter == "painters" and isinstance(network, Styles):
        before, after = manners(model, network, image, dict(zip(chosen, made.unbind(1), strict=True)))
        values |= {"style_before": before, "style_after": after}
    sheets = [
        render.sheet(torch.cat([one[None].cpu(), several]), columns=min(4, 1 + len(chosen)))
        for one, several in zip(image, made, strict=True)
    ]
    caption = told(chosen, values)
    return Result({"stylize": render.sheet(torch.cat(sheets), columns=1, gap=8)}, values, {"stylize": caption})


@torch.no_grad()
def contents(model: Model, layers: Layers, image: Tensor, made: Tensor) -> Tensor:
    """Content loss of N×S×3×H×W to the photographs, N×S, the mean over layers."""
    aims = model.features(image, layers.content)
    rows = [model.features(picture, layers.content) for picture in made.unbind(1)]
    return torch.stack([torch.stack([content_loss(row[name], aims[name]) for name in layers.content]).mean(0) for row in rows], 1).cpu()


@torch.no_grad()
def manners(model: Model, network: Styles, image: Tensor, made: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Style loss of the photographs and of the pictures made in each style, N×S each. A painting is seen at the size of the photograph."""
    layers, (height, width) = layers_of(model), image.shape[-2:]
    asked = {name for style in made for name in blend(style)}
    seen = {name: grams(model, layers, cut(images.read(PAINTINGS / f"{name}.jpg"), height, width)) for name in asked}
    own = grams(model, layers, image)
    before, after = list[Tensor](), list[Tensor]()
    for style, picture in made.items():
        shares = normalized(blend(style))
        target = {layer: torch.stack([share * seen[name][layer] for name, share in shares.items()]).sum(0) for layer in layers.style}
        for found, rows in ((own, before), (grams(model, layers, picture), after)):
            rows.append(torch.stack([gram_loss(found[layer], target[layer]) for layer in layers.style]).mean(0))
    return torch.stack(before, 1).cpu(), torch.stack(after, 1).cpu()


def grams(model: Model, layers: Layers, image: Tensor) -> dict[str, Tensor]:
    """The Gram matrix of each style layer."""
    return {name: gram(features) for name, features in model.features(image, layers.style).items()}


def cut(painting: Tensor, height: int, width: int) -> Tensor:
    """The middle of a painting, height × width pixels, resized as little as that needs."""
    scale = max(height / painting.shape[2], width / painting.shape[3])
    sides = max(height, round(painting.shape[2] * scale)), max(width, round(painting.shape[3] * scale))
    return images.center_crop(images.resize(painting, *sides), height, width)


def told(chosen: tuple[str, ...], values: dict[str, Tensor | list[str]]) -> str:
    """What the sheet shows, in reading order, and the style losses in words."""
    text = f"The photograph, then in reading order: {', '.join(chosen)}; one pass of the network each."
    before, after = values.get("style_before"), values.get("style_after")
    if not (isinstance(before, Tensor) and isinstance(after, Tensor)):
        return text
    shares = [f"{style} {float(share):.0%}" for style, share in zip(chosen, (after / before.clamp_min(1e-12)).mean(0), strict=True)]
    return f"{text} Style loss left of the photograph's own, as this network sees it: {', '.join(shares)}."
