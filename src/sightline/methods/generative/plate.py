"""Syntheses and the natural images of their units on one plate."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import render
from ...plates import FigureRow, compose_figure_rows
from ..analytical.guided import resize_for_sheet
from .exemplars import NaturalExemplars
from .facets import Facet

MAX_EXEMPLAR_ROWS, EXEMPLAR_COLUMNS = 8, 8  # pictures that get a row of their own at most, and natural patches or pictures in a row


def compose_exemplar_figure(exemplars: NaturalExemplars, picture: Tensor, ratio: Tensor, facets: Sequence[Facet]) -> tuple[Tensor, str]:
    """Pictures N×3×H×W beside the natural patches of their units or facets, and the caption."""
    few = len(picture) <= MAX_EXEMPLAR_ROWS
    several = " (the middle of the pictures)" if len(picture) > 1 else ""
    answer = f"At its strongest place the unit answers {float(ratio.median()):.2f} times as strongly as on the best natural image{several}."
    if not ratio.median():
        answer = "No natural image drives the unit above zero."
    if facets:
        rows = [make_facet_row(exemplars, picture, number, float(ratio[number]), group) for number, group in enumerate(facets)]
        return compose_figure_rows(rows, 112), (
            "Each synthesis, the mean that it began from, and the natural images nearest to the middle of its group, with their activation and class; "
            f"the groups of a unit's {len(exemplars.top_images[0].ids)} strongest of {exemplars.scan.images:,} images are by k-means on the network's own features. {answer}"
        )
    rows = (
        [make_exemplar_row(exemplars, picture, number, float(ratio[number])) for number in range(len(picture))]
        if few
        else make_quartet_rows(exemplars, picture, ratio)
    )
    return compose_figure_rows(rows, 112 if few else 144), (
        f"Each synthesis ({'first in its row' if few else 'upper left of its four'}) with the parts of {exemplars.scan.images:,} natural images that drive its "
        f"unit most, gray beyond an image, with their activation and class. {answer} What the natural ones share and the synthesis lacks, the synthesis does not tell."
    )


def make_exemplar_row(exemplars: NaturalExemplars, picture: Tensor, picture_index: int, ratio: float) -> FigureRow:
    """One picture and the strongest natural patches, under the unit's name."""
    cases = exemplars.load_examples(picture_index, torch.arange(min(EXEMPLAR_COLUMNS, len(exemplars.top_images[picture_index].ids))))
    tiles = [picture[picture_index : picture_index + 1], *(resize_for_sheet(part) for part in cases.patches)]
    return FigureRow(
        exemplars.describe_unit(picture_index), tiles, [f"synthesis\n× {ratio:.2f}", *cases.describe_examples(exemplars.scan)], lead_count=1
    )


def make_facet_row(exemplars: NaturalExemplars, picture: Tensor, picture_index: int, ratio: float, facet: Facet) -> FigureRow:
    """One picture, the mean that it began from, and whole images of its group."""
    cases = exemplars.load_examples(picture_index, facet.indices[: EXEMPLAR_COLUMNS - 1])
    tiles = [picture[picture_index : picture_index + 1], facet.start_image[None], *cases.images.split(1)]
    title = f"{exemplars.describe_unit(picture_index)}, facet {facet.index + 1} of {len(facet.centers)}: {facet.image_count} images"
    return FigureRow(title, tiles, [f"synthesis\n× {ratio:.2f}", "start\n(a mean)", *cases.describe_examples(exemplars.scan)], lead_count=2)


def make_quartet_rows(exemplars: NaturalExemplars, picture: Tensor, ratio: Tensor) -> list[FigureRow]:
    """Every picture and its unit's three strongest patches in one square, and the ratio under it."""
    side, tiles = picture.shape[-1], list[Tensor]()
    for number in range(len(picture)):
        parts = exemplars.load_examples(number, torch.arange(min(3, len(exemplars.top_images[number].ids)))).patches
        square = torch.cat([picture[number : number + 1], *(render.resize_picture(part, side, side) for part in parts)])
        tiles.append(render.make_contact_sheet(square, columns=2))
    words = [f"{exemplars.describe_unit(number)}\n× {value:.2f}" for number, value in enumerate(ratio.tolist())]
    return [
        FigureRow("", tiles[start : start + EXEMPLAR_COLUMNS], words[start : start + EXEMPLAR_COLUMNS])
        for start in range(0, len(tiles), EXEMPLAR_COLUMNS)
    ]
