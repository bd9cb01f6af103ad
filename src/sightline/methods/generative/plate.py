"""Syntheses and the natural images of their units on one plate."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import render
from ...plates import Row, plate
from ..analytical.guided import sized
from .exemplars import Nature
from .facets import Facet

ROWS, ACROSS = 8, 8  # pictures that get a row of their own at most, and natural patches or pictures in a row


def panel(nature: Nature, picture: Tensor, ratio: Tensor, groups: Sequence[Facet]) -> tuple[Tensor, str]:
    """Pictures N×3×H×W beside the natural patches of their units or facets, and the caption."""
    few = len(picture) <= ROWS
    several = " (the middle of the pictures)" if len(picture) > 1 else ""
    answer = f"At its strongest place the unit answers {float(ratio.median()):.2f} times as strongly as on the best natural image{several}."
    if not ratio.median():
        answer = "No natural image drives the unit above zero."
    if groups:
        rows = [facet_row(nature, picture, number, float(ratio[number]), group) for number, group in enumerate(groups)]
        return plate(rows, 112), (
            "Each synthesis, the mean that it began from, and the natural images nearest to the middle of its group, with their activation and class; "
            f"the groups of a unit's {len(nature.strongest[0].ids)} strongest of {nature.found.images:,} images are by k-means on the network's own features. {answer}"
        )
    rows = (
        [row(nature, picture, number, float(ratio[number])) for number in range(len(picture))] if few else quartets(nature, picture, ratio)
    )
    return plate(rows, 112 if few else 144), (
        f"Each synthesis ({'first in its row' if few else 'upper left of its four'}) with the parts of {nature.found.images:,} natural images that drive its "
        f"unit most, gray beyond an image, with their activation and class. {answer} What the natural ones share and the synthesis lacks, the synthesis does not tell."
    )


def row(nature: Nature, picture: Tensor, number: int, ratio: float) -> Row:
    """One picture and the strongest natural patches, under the unit's name."""
    cases = nature.cases(number, torch.arange(min(ACROSS, len(nature.strongest[number].ids))))
    tiles = [picture[number : number + 1], *(sized(part) for part in cases.parts)]
    return Row(nature.name(number), tiles, [f"synthesis\n× {ratio:.2f}", *cases.words(nature.found)], lead=1)


def facet_row(nature: Nature, picture: Tensor, number: int, ratio: float, group: Facet) -> Row:
    """One picture, the mean that it began from, and whole images of its group."""
    cases = nature.cases(number, group.places[: ACROSS - 1])
    tiles = [picture[number : number + 1], group.start[None], *cases.pictures.split(1)]
    title = f"{nature.name(number)}, facet {group.number + 1} of {len(group.centres)}: {group.size} images"
    return Row(title, tiles, [f"synthesis\n× {ratio:.2f}", "start\n(a mean)", *cases.words(nature.found)], lead=2)


def quartets(nature: Nature, picture: Tensor, ratio: Tensor) -> list[Row]:
    """Every picture and its unit's three strongest patches in one square, and the ratio under it."""
    side, tiles = picture.shape[-1], list[Tensor]()
    for number in range(len(picture)):
        parts = nature.cases(number, torch.arange(min(3, len(nature.strongest[number].ids)))).parts
        square = torch.cat([picture[number : number + 1], *(render.resized(part, side, side) for part in parts)])
        tiles.append(render.sheet(square, columns=2))
    words = [f"{nature.name(number)}\n× {value:.2f}" for number, value in enumerate(ratio.tolist())]
    return [Row("", tiles[start : start + ACROSS], words[start : start + ACROSS]) for start in range(0, len(tiles), ACROSS)]
