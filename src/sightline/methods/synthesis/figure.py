"""What a synthesis shows: the picture or the sheet of pictures, and the evidence in words."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sightline.images.plotting.captioned_rows import FigureRow, compose_figure_rows
from sightline.images.plotting.maps import enlarge_pixels, make_contact_sheet, resize_picture
from sightline.methods.synthesis.evidence import SynthesisEvidence
from sightline.methods.synthesis.facets import Facet, match_own_facets
from sightline.methods.synthesis.natural_images import NaturalExemplars
from sightline.models.model import Model
from sightline.models.tracing.crops import resize_for_sheet
from sightline.optim.ascent import AscentResult
from sightline.optim.objectives.objective import Objective
from sightline.registry.result import Result

MAX_EXEMPLAR_ROWS, EXEMPLAR_COLUMNS = (
    8,
    8,
)  # pictures that get a row of their own at most, and natural patches or pictures in a row


@dataclass(frozen=True)
class FinishedSynthesis:
    """A synthesis: what was asked, what came of it, what speaks for it, and what may stand beside it."""

    objective: Objective
    objective_units: tuple[str, tuple[int, ...]]
    ascent: AscentResult
    evidence: SynthesisEvidence
    frames: list[Tensor]
    movie_format: str
    exemplars: NaturalExemplars | None
    facets: list[Facet]
    opacity: Tensor | None


def build_synthesis_result(model: Model, finished: FinishedSynthesis) -> Result:
    """The picture or the sheet of pictures, with what speaks for them, and beside natural images where there is a scan."""
    image, scores, evidence = (
        finished.ascent[0].clamp(0, 1).cpu(),
        finished.ascent[1].cpu(),
        finished.evidence,
    )
    single = len(image) == 1
    values = {
        name: value
        for name, value in vars(evidence).items()
        if isinstance(value, Tensor) and name != "score"
    }
    score = float(evidence.score[0]) if single else evidence.score
    visible = (
        image if finished.opacity is None else blend_over_checkerboard(image, finished.opacity)
    )
    panels = {"synthesis": make_contact_sheet(enlarge_pixels(visible, 128 if single else 64))}
    captions = {"synthesis": describe_synthesis(model, finished)}
    if finished.opacity is not None:
        values["alpha"] = finished.opacity
    if finished.exemplars:
        values["ratio"] = finished.exemplars.compute_response_ratio(image)
        panels["natural"], captions["natural"] = compose_exemplar_figure(
            finished.exemplars, image, values["ratio"], finished.facets
        )
        if finished.facets:
            values["facet"] = match_own_facets(model, image, finished.facets)
            captions["natural"] += (
                f" To the network, {int(values['facet'].sum())} of {len(image)} are still nearest to their own group's middle."
            )
    movies = (
        {f"run.{finished.movie_format}": torch.cat([*finished.frames, make_contact_sheet(image)])}
        if finished.frames
        else {}
    )
    values = {
        "image": image,
        "scores": scores[:, 0] if single else scores,
        "score": score,
        **values,
    }
    return Result(panels, values, captions, movies=movies)


def blend_over_checkerboard(image: Tensor, opacity: Tensor) -> Tensor:
    """Pictures that lie over gray 0.5, over a checkerboard instead, where `opacity` N×H×W lets it through."""
    height, width = image.shape[-2:]
    side = max(2, min(height, width) // 16)
    checks = (torch.arange(height)[:, None] // side + torch.arange(width) // side) % 2
    return (image + (1 - opacity[:, None]) * (0.1 * checks - 0.05)).clamp(0, 1)


def describe_synthesis(model: Model, finished: FinishedSynthesis) -> str:
    """What is shown, and what speaks for it, in words."""
    scores, single, (layer, units) = (
        finished.ascent[1],
        len(finished.ascent[0]) == 1,
        finished.objective_units,
    )
    about = (
        str(finished.objective)
        if single
        else f"{len(finished.ascent[0])} units of {layer}, row by row: {format_unit_names(model, layer, units)}"
    )
    begun = (
        f" It began at {float(scores[0, 0]):.2f} and took {len(scores)} steps."
        if single
        else f" Each took {len(scores)} steps."
    )
    dead = [
        unit
        for unit, moved in zip(units, finished.ascent.received_gradient.tolist(), strict=False)
        if not moved
    ]
    caption = f"{about}: {finished.evidence.describe_evidence()}{begun}"
    if finished.opacity is not None:
        caption += f" The checkerboard shows through where the picture does little for the score: {float(finished.opacity.mean()):.0%} is opaque."
    caption += (
        f" No gradient ever reached the picture of {', '.join(map(str, dead))}: dead, and left as it started."
        if dead
        else ""
    )
    return caption + (
        f" Note: {finished.ascent.stop_reason}." if finished.ascent.stop_reason else ""
    )


def format_unit_names(model: Model, layer: str, units: tuple[int, ...]) -> str:
    """The units in words: classes by name, a run of numbers by its ends."""
    if layer == "logits":
        return ", ".join(model.labels[unit] for unit in units)
    run = units == tuple(range(units[0], units[-1] + 1))
    return f"{units[0]} to {units[-1]}" if run and len(units) > 1 else ", ".join(map(str, units))


def compose_exemplar_figure(
    exemplars: NaturalExemplars, picture: Tensor, ratio: Tensor, facets: Sequence[Facet]
) -> tuple[Tensor, str]:
    """Pictures N×3×H×W beside the natural patches of their units or facets, and the caption."""
    few = len(picture) <= MAX_EXEMPLAR_ROWS
    several = " (the middle of the pictures)" if len(picture) > 1 else ""
    answer = f"At its strongest place the unit answers {float(ratio.median()):.2f} times as strongly as on the best natural image{several}."
    if not ratio.median():
        answer = "No natural image drives the unit above zero."
    if facets:
        rows = [
            make_facet_row(exemplars, picture, number, float(ratio[number]), group)
            for number, group in enumerate(facets)
        ]
        return compose_figure_rows(rows, 112), (
            "Each synthesis, the mean that it began from, and the natural images nearest to the middle of its group, with their activation and class; "
            f"the groups of a unit's {len(exemplars.top_images[0].ids)} strongest of {exemplars.scan.images:,} images are by k-means on the network's own features. {answer}"
        )
    rows = (
        [
            make_exemplar_row(exemplars, picture, number, float(ratio[number]))
            for number in range(len(picture))
        ]
        if few
        else make_quartet_rows(exemplars, picture, ratio)
    )
    return compose_figure_rows(rows, 112 if few else 144), (
        f"Each synthesis ({'first in its row' if few else 'upper left of its four'}) with the parts of {exemplars.scan.images:,} natural images that drive its "
        f"unit most, gray beyond an image, with their activation and class. {answer} What the natural ones share and the synthesis lacks, the synthesis does not tell."
    )


def make_exemplar_row(
    exemplars: NaturalExemplars, picture: Tensor, picture_index: int, ratio: float
) -> FigureRow:
    """One picture and the strongest natural patches, under the unit's name."""
    cases = exemplars.load_examples(
        picture_index,
        torch.arange(min(EXEMPLAR_COLUMNS, len(exemplars.top_images[picture_index].ids))),
    )
    tiles = [
        picture[picture_index : picture_index + 1],
        *(resize_for_sheet(part) for part in cases.patches),
    ]
    return FigureRow(
        exemplars.describe_unit(picture_index),
        tiles,
        [f"synthesis\n× {ratio:.2f}", *cases.describe_examples(exemplars.scan)],
        lead_count=1,
    )


def make_facet_row(
    exemplars: NaturalExemplars, picture: Tensor, picture_index: int, ratio: float, facet: Facet
) -> FigureRow:
    """One picture, the mean that it began from, and whole images of its group."""
    cases = exemplars.load_examples(picture_index, facet.indices[: EXEMPLAR_COLUMNS - 1])
    tiles = [
        picture[picture_index : picture_index + 1],
        facet.start_image[None],
        *cases.images.split(1),
    ]
    title = f"{exemplars.describe_unit(picture_index)}, facet {facet.index + 1} of {len(facet.centers)}: {facet.image_count} images"
    return FigureRow(
        title,
        tiles,
        [f"synthesis\n× {ratio:.2f}", "start\n(a mean)", *cases.describe_examples(exemplars.scan)],
        lead_count=2,
    )


def make_quartet_rows(
    exemplars: NaturalExemplars, picture: Tensor, ratio: Tensor
) -> list[FigureRow]:
    """Every picture and its unit's three strongest patches in one square, and the ratio under it."""
    side, tiles = picture.shape[-1], list[Tensor]()
    for number in range(len(picture)):
        parts = exemplars.load_examples(
            number, torch.arange(min(3, len(exemplars.top_images[number].ids)))
        ).patches
        square = torch.cat(
            [picture[number : number + 1], *(resize_picture(part, side, side) for part in parts)]
        )
        tiles.append(make_contact_sheet(square, columns=2))
    words = [
        f"{exemplars.describe_unit(number)}\n× {value:.2f}"
        for number, value in enumerate(ratio.tolist())
    ]
    return [
        FigureRow(
            "", tiles[start : start + EXEMPLAR_COLUMNS], words[start : start + EXEMPLAR_COLUMNS]
        )
        for start in range(0, len(tiles), EXEMPLAR_COLUMNS)
    ]
