"""Texture synthesis: more of the same, from a small piece (Efros & Leung 1999 to Barnes 2009)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from ... import image as images
from ... import render
from ...ascend import Callback, Step
from ...catalog import method
from ...errors import SightlineError, outside
from ...exemplar.efros_leung import grow
from ...exemplar.measures import copy_rate, diversity, seam
from ...exemplar.patchmatch import optimize
from ...exemplar.quilting import quilt, transfer
from ...exemplar.wei_levoy import scan_lines
from ...knobs import Between
from ...model import Model
from ...result import Result

LEAST_SIDE = 16


@dataclass(frozen=True)
class Order:
    """What is to be made: from which exemplar 3×h×w, how large, with windows of how many pixels, tiling or not, remade after
    which picture 3×H×W, with which random numbers, watched by whom."""

    exemplar: Tensor
    size: tuple[int, int]
    window: int
    tileable: bool
    guide: Tensor | None
    generator: torch.Generator
    callback: Callback | None


@method(
    title="Texture synthesis",
    question="What would more of this texture look like?",
    reading="The small piece on the left, and a larger picture made of it. Look for what repeats, for joints, and for what the piece has but the large picture lacks.",
    caution="A good texture may be a copy: see the copy rate. These methods know nothing of the network; they show how far local statistics alone go.",
    tour=({"image": "gravel"},),
)
def texture(
    model: Model,
    image: Tensor,
    *,
    method: Literal["quilting", "efros_leung", "wei_levoy", "patchmatch"] = "quilting",
    size: Annotated[int | None, Between(LEAST_SIDE, 8192)] = None,
    window: Annotated[int | None, Between(3, 256)] = None,
    tileable: bool = False,
    guide: Tensor | str | None = None,
    count: Annotated[int, Between(1, 64)] = 1,
    seed: int = 0,
    callback: Callback | None = None,
) -> Result:
    """Makes a larger picture of the same texture from a small piece of it.

    `values["image"]` is the pictures, N·count×3×H×W (those of one exemplar together); `copy_rate` the share of their 12×12
    patches that stand in the exemplar as they are, `seam` how much steeper the step from edge to opposite edge is than
    inside (about 1 where a picture tiles), with a `count`, `diversity` how much the seeds differ (0 equal, about 1 unrelated).

    Args:
        method: "quilting" lays whole blocks (Efros & Freeman 2001), "efros_leung" grows pixel by pixel (1999), "wei_levoy"
            scans a pyramid (2000), "patchmatch" makes every patch alike (Kwatra 2005, Barnes 2009).
        size: Side of the square picture in pixels; twice the exemplar's shorter side by default.
        window: Side of the blocks ("quilting"; a quarter of the exemplar by default) or of the neighbourhoods (13, 9 and 7)
            in pixels; about as large as the largest thing that repeats.
        tileable: Whether the picture shall continue across its edges; "wei_levoy" and "patchmatch" always do.
        guide: A picture to remake from the texture by its light and dark, for "quilting" (texture transfer); it gives the size.
        count: How many pictures, from this seed on.
    """
    if min(image.shape[-2:]) < LEAST_SIDE:
        raise SightlineError(
            f"the exemplar is {image.shape[-2]}×{image.shape[-1]} pixels; a texture needs {LEAST_SIDE}×{LEAST_SIDE} or more"
        )
    target = followed(guide, method, size)
    make, preset = MAKERS[method], WINDOWS.get(method, min(image.shape[-2:]) // 4)
    width = checked_window(window if window is not None else min(preset, min(image.shape[-2:]) // 2), method, image)
    side = size or 2 * min(image.shape[-2:])
    shape = (target.shape[-2], target.shape[-1]) if target is not None else (side, side)
    made = list[Tensor]()
    for number, (exemplar, variation) in enumerate((exemplar, seed + index) for exemplar in image.cpu() for index in range(count)):
        watch = after(callback, number, len(image) * count) if callback else None
        generator = torch.Generator().manual_seed(variation)
        made.append(make(Order(exemplar, shape, width, tileable, target, generator, watch)).clamp(0, 1))
        if watch and watch.stopped:
            break
    pictures = torch.stack(made)
    values = measured(pictures, image.cpu(), count)
    panel = render.beside(image[:1].cpu(), pictures[:1]) if target is None else render.beside(image[:1].cpu(), target[None], pictures[:1])
    caption = (
        f"The exemplar, {image.shape[-2]}×{image.shape[-1]} pixels, and {'the picture to follow, and ' if target is not None else ''}"
        f"{shape[0]}×{shape[1]} pixels made of it by {method.replace('_', ' and ')}. {values['copy_rate'][0]:.0%} of its 12×12 patches are copied whole; "
        f"the step across its edges is {values['seam'][0]:.1f} × that inside."
    )
    return Result({"texture": panel}, {"image": pictures, **values}, {"texture": caption})


def by_quilting(order: Order) -> Tensor:
    """Blocks, or blocks that follow a picture."""
    if order.guide is not None:
        return transfer(order.exemplar, order.guide, block=order.window, generator=order.generator, callback=order.callback)[0]
    return quilt(
        order.exemplar, order.size, block=order.window, generator=order.generator, tileable=order.tileable, callback=order.callback
    )[0]


def by_growing(order: Order) -> Tensor:
    """Pixel by pixel, outwards."""
    return grow(
        order.exemplar, order.size, window=order.window, generator=order.generator, tileable=order.tileable, callback=order.callback
    )


def by_scanning(order: Order) -> Tensor:
    """Pixel by pixel, line by line."""
    return scan_lines(order.exemplar, order.size, window=order.window, generator=order.generator, callback=order.callback)


def by_patches(order: Order) -> Tensor:
    """All pixels at once, until their patches fit."""
    return optimize(order.exemplar, order.size, window=order.window, generator=order.generator, callback=order.callback)[0]


MAKERS: dict[str, Callable[[Order], Tensor]] = {
    "quilting": by_quilting,
    "efros_leung": by_growing,
    "wei_levoy": by_scanning,
    "patchmatch": by_patches,
}
WINDOWS = {"efros_leung": 13, "wei_levoy": 9, "patchmatch": 7}


def followed(guide: Tensor | str | None, method: str, size: int | None) -> Tensor | None:
    """The picture that a texture transfer follows, 3×H×W."""
    if guide is None:
        return None
    if method != "quilting":
        raise SightlineError(f"a guide is followed by method='quilting' only, not {method!r}")
    if size is not None:
        raise SightlineError("the guide gives the size; leave out size or guide")
    return images.given(guide)[0].cpu()


def checked_window(window: int, method: str, image: Tensor) -> int:
    """The window, made odd where it has a middle; raises SightlineError where it does not fit into the exemplar."""
    window = window if method == "quilting" else window | 1
    least, most = (6 if method == "quilting" else 3), min(image.shape[-2:]) * 2 // 3
    if not least <= window <= most:
        raise outside("window", window, least, most)
    return window


class after:  # noqa: N801 a function with a memory
    """Counts the steps of one run of several as part of them all, and notes whether it was stopped."""

    def __init__(self, callback: Callback, number: int, runs: int) -> None:
        self.callback, self.number, self.runs, self.stopped = callback, number, runs, False

    def __call__(self, step: Step) -> bool:
        told = Step(self.number * step.total + step.index, self.runs * step.total, step.scores, step.image)
        self.stopped = bool(self.callback(told))
        return self.stopped


def measured(pictures: Tensor, exemplars: Tensor, count: int) -> dict[str, list[float]]:
    """Copy rate, seam and diversity of each picture."""
    values = {
        "copy_rate": [copy_rate(picture, exemplars[index // count]) for index, picture in enumerate(pictures)],
        "seam": [seam(picture) for picture in pictures],
    }
    return {**values, "diversity": [diversity(group) for group in pictures.split(count) if len(group) > 1]} if count > 1 else values
