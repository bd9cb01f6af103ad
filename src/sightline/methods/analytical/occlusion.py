"""Saliency by occlusion: cover a window, see how far the score falls (Zeiler & Fergus 2014, section 4.2)."""

from typing import Annotated

import torch
from torch import Tensor

from ... import render
from ...catalog import Between, method
from ...errors import SightlineError
from ...model import Model
from ...result import Result


@method(
    title="Saliency by occlusion",
    question="Which part of the image does the score depend on? Cover it and see.",
    reading="Red: covering this place lowers the class score, so the network used it. Blue: covering it raises the score.",
    caution="The gray patch is itself unusual input, and parts that can stand in for each other show little. The map is as coarse as the window.",
    quick={"stride": 16, "window": 32},
)
def occlusion(
    model: Model,
    image: Tensor,
    *,
    label: int | str = "top",
    window: Annotated[int, Between(1, 1024)] = 16,
    stride: Annotated[int, Between(1, 1024)] = 8,
    fill: Annotated[float, Between(0, 1)] = 0.5,
    batch: Annotated[int, Between(1, 4096)] = 32,
) -> Result:
    """Slides a covered window over the image and records the drop of a class score.

    Windows lie fully inside the image, top-left corners at multiples of the stride. `values["drop"]` is
    score(clean) − score(covered) before the softmax, N×rows×columns.

    Args:
        window: Side of the covered square in pixels.
        stride: Pixels between neighbouring windows.
        fill: Gray value that covers, in [0, 1].
        batch: How many covered images are run at once.
    """
    height, width = image.shape[-2:]
    if window > min(height, width):
        raise SightlineError(f"window is {window}; it must lie between 1 and {min(height, width)}, the image's shorter side")
    index = model.choose(label, image)
    places = [(y, x) for y in range(0, height - window + 1, stride) for x in range(0, width - window + 1, stride)]
    rows, columns = (height - window) // stride + 1, (width - window) // stride + 1
    with torch.no_grad():
        clean = model.run(image, ["logits"])["logits"].gather(1, index.view(-1, 1)).cpu()
        drops = [drop_of(model, one, int(i), places, window=window, fill=fill, batch=batch) for one, i in zip(image, index, strict=True)]
    drop = (clean - torch.stack(drops)).view(-1, rows, columns)
    spread = painted(drop, places, window, height, width)
    limit = spread.abs().flatten(1).amax(1)
    panel = render.beside(image, render.signed(spread, limit), render.over(image, spread.clamp_min(0), limit))
    named = ", ".join(model.labels[i] for i in index.tolist())
    strongest = drop.flatten(1).amax(1)
    caption = (
        f"Image, mean drop of the score of {named} over the {window}×{window} windows that cover each pixel (white 0, ±{float(limit[0]):.3g} full "
        f"colour), and both. Clean score {float(clean[0]):.2f}; the worst window costs {float(strongest[0]):.2f}."
    )
    return Result({"occlusion": panel}, {"drop": drop, "score": clean.view(-1), "label": index}, {"occlusion": caption})


def drop_of(model: Model, image: Tensor, index: int, places: list[tuple[int, int]], *, window: int, fill: float, batch: int) -> Tensor:
    """Scores of one image 3×H×W with each place covered in turn."""
    scores: list[Tensor] = []
    for start in range(0, len(places), batch):
        part = places[start : start + batch]
        covered = image.expand(len(part), -1, -1, -1).clone()
        for copy, (y, x) in zip(covered, part, strict=True):
            copy[:, y : y + window, x : x + window] = fill
        scores.append(model.run(covered, ["logits"])["logits"][:, index].cpu())
    return torch.cat(scores)


def painted(drop: Tensor, places: list[tuple[int, int]], window: int, height: int, width: int) -> Tensor:
    """N×rows×columns drops as N×H×W: at each pixel the mean over the windows that cover it, 0 where none does."""
    total, count = torch.zeros(len(drop), height, width), torch.zeros(height, width)
    for i, (y, x) in enumerate(places):
        total[:, y : y + window, x : x + window] += drop.flatten(1)[:, i, None, None]
        count[y : y + window, x : x + window] += 1
    return total / count.clamp_min(1)
