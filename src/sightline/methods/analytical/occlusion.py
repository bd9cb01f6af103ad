"""Saliency by occlusion: cover a window, see how far the score falls (Zeiler & Fergus 2014, section 4.2)."""

from typing import Annotated, Literal

import torch
from torch import Tensor

from ... import render
from ...catalog import Map, method
from ...errors import SightlineError
from ...incremental import cover
from ...knobs import Between
from ...model import Model
from ...result import Result
from ...transform import blur
from ...windows import Windows

Fill = Literal["gray", "mean", "blur", "zero"]


@method(
    title="Saliency by occlusion",
    question="Which part of the image does the score depend on? Cover it and see.",
    reading="Red: covering this place lowers the class score, so the network used it. Blue: covering it raises the score.",
    caution="The gray patch is itself unusual input, and parts that can stand in for each other show little. The map is as coarse as the window.",
    quick={"stride": 16, "window": 32},
    # The default stride of 8 has four times the windows, and every randomized network is asked again.
    map=Map("drop", costly=True, knobs={"stride": 16}),
)
def occlusion(
    model: Model,
    image: Tensor,
    *,
    label: int | str = "top",
    window: Annotated[int, Between(1, 1024)] = 16,
    stride: Annotated[int, Between(1, 1024)] = 8,
    fill: Annotated[float | Fill, Between(0, 1)] = 0.5,
    batch: Annotated[int, Between(1, 4096)] = 32,
    incremental: bool = True,
) -> Result:
    """Slides a covered window over the image and records the drop of a class score.

    Windows lie fully inside the image, top-left corners at multiples of the stride. `values["drop"]` is
    score(clean) − score(covered) before the softmax, N×rows×columns.

    Args:
        window: Side of the covered square in pixels.
        stride: Pixels between neighbouring windows.
        fill: Gray value that covers, in [0, 1], or "gray" (0.5), "zero" (black), "mean" (the image's mean colour), "blur" (the image, blurred).
        batch: How many covered images are run at once.
        incremental: Whether to compute only what each window can reach, which gives the same and is faster, or every covered image whole.
    """
    height, width = image.shape[-2:]
    if window > min(height, width):
        raise SightlineError(f"window is {window}; it must lie between 1 and {min(height, width)}, the image's shorter side")
    covers = covers_of(image, fill, window)
    index = model.choose(label, image)
    places = [(y, x) for y in range(0, height - window + 1, stride) for x in range(0, width - window + 1, stride)]
    rows, columns = (height - window) // stride + 1, (width - window) // stride + 1
    with torch.no_grad():
        clean = model.run(image, ["logits"])["logits"].gather(1, index.view(-1, 1)).cpu()
    found = [
        cover(model, Windows(image[i : i + 1], covers[i : i + 1], places, window), index[i : i + 1], batch=batch, incremental=incremental)
        for i in range(len(image))
    ]
    drop = (clean - torch.stack([one.scores[:, 0].cpu() for one in found])).view(-1, rows, columns)
    spread = painted(drop, places, window, height, width)
    # What is left of a score that nothing changes is rounding; it must not be stretched to full colour.
    rounding = 1e-5 * clean.view(-1).abs().clamp_min(1)
    limit = torch.maximum(spread.abs().flatten(1).amax(1), rounding)
    panel = render.beside(image, render.signed(spread, limit), render.over(image, spread.clamp_min(0), limit))
    named = ", ".join(model.labels[i] for i in index.tolist())
    strongest = drop.flatten(1).amax(1)
    caption = (
        f"Image, mean drop of the score of {named} over the {window}×{window} windows that cover each pixel (white 0, ±{float(limit[0]):.3g} full "
        f"colour), and both. Clean score {float(clean[0]):.2f}; the worst window costs {float(strongest[0]):.2f}."
    )
    values = {"drop": drop, "score": clean.view(-1), "label": index, "incremental": found[0].share, "speedup_bound": found[0].bound}
    return Result({"occlusion": panel}, values, {"occlusion": caption})


def covers_of(image: Tensor, fill: float | str, window: int) -> Tensor:
    """What covers, N×3×H×W. Raises SightlineError for a word that is not a fill."""
    if isinstance(fill, (int, float)) and not isinstance(fill, bool):
        return torch.full_like(image, fill)
    plain = {"gray": 0.5, "zero": 0.0}
    if fill in plain:
        return torch.full_like(image, plain[fill])
    if fill == "mean":
        return image.mean((2, 3), keepdim=True).expand_as(image)
    if fill == "blur":
        return blur(image, window / 2)
    raise SightlineError(f"fill is {fill!r}; it must be a number from 0 to 1, gray, mean, blur or zero")


def painted(drop: Tensor, places: list[tuple[int, int]], window: int, height: int, width: int) -> Tensor:
    """N×rows×columns drops as N×H×W: at each pixel the mean over the windows that cover it, 0 where none does."""
    total, count = torch.zeros(len(drop), height, width), torch.zeros(height, width)
    for i, (y, x) in enumerate(places):
        total[:, y : y + window, x : x + window] += drop.flatten(1)[:, i, None, None]
        count[y : y + window, x : x + window] += 1
    return total / count.clamp_min(1)
