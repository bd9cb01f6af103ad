"""The figures of a synthesis: the image or the sheet of images, natural images, and captions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sightline.images.plotting.captioned_rows import FigureRow, compose_figure_rows
from sightline.images.plotting.figures import FigureData, PictureRows
from sightline.images.plotting.maps import enlarge_pixels, make_contact_sheet
from sightline.images.transforms import cover_center
from sightline.methods.synthesis.evidence import SynthesisEvidence
from sightline.methods.synthesis.facets import Facet, match_own_facets
from sightline.methods.synthesis.natural_images import NaturalExemplars
from sightline.models.model import Model
from sightline.models.tracing.crops import resize_for_sheet
from sightline.optim.ascent import AscentResult
from sightline.optim.objectives.objective import Objective
from sightline.registry.result import Result

MAX_EXEMPLAR_ROWS = 8  # images that each get a row of their own; more stand in squares of four
EXEMPLAR_COLUMNS = 8  # tiles in a row
ROW_TILE_SIDE = 112  # pixels
QUARTET_TILE_SIDE = 144  # pixels


@dataclass(frozen=True)
class FinishedSynthesis:
    """A finished synthesis: what was asked for, what came out, and what may stand beside it."""

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
    """The result: pictures, numbers and captions, with natural images where there is a scan."""
    image = finished.ascent[0].clamp(0, 1).cpu()
    values = collect_synthesis_values(finished, image)
    picture = model.to_picture(image)
    visible = picture
    if finished.opacity is not None:
        visible = blend_over_checkerboard(picture, finished.opacity)
        values["alpha"] = finished.opacity
    smallest_side = 128 if len(image) == 1 else 64
    pictures = {"synthesis": make_contact_sheet(enlarge_pixels(visible, smallest_side))}
    captions = {"synthesis": describe_synthesis(model, finished)}
    figures: dict[str, FigureData] = {}
    if len(image) > 1:
        figures["synthesis"] = make_unit_rows(model, finished, visible)

    if finished.exemplars is not None:
        ratio = finished.exemplars.compute_response_ratio(image)
        values["ratio"] = ratio
        rows, captions["natural"] = compose_exemplar_figure(
            finished.exemplars, picture, ratio, finished.facets
        )
        pictures["natural"] = compose_figure_rows(rows.rows, rows.tile_side)
        figures["natural"] = rows
    if finished.facets:
        in_own_facet = match_own_facets(model, image, finished.facets)
        values["facet"] = in_own_facet
        captions["natural"] += (
            f" In the network's features, {int(in_own_facet.sum())} of {len(image)} images are "
            "still nearest to the centre of their own group."
        )

    movies: dict[str, Tensor] = {}
    if finished.frames:
        frames = torch.cat([*finished.frames, make_contact_sheet(picture)])
        movies[f"run.{finished.movie_format}"] = frames
    return Result(pictures, values, captions, movies=movies, figures=figures)


def make_unit_rows(model: Model, finished: FinishedSynthesis, pictures: Tensor) -> PictureRows:
    """The images N×3×H×W, each with the name of its unit."""
    layer, units = finished.objective_units
    names = [format_unit_names(model, layer, (unit,)) for unit in units]
    if layer != "logits":
        names = [f"unit {name}" for name in names]
    return PictureRows([FigureRow("", pictures.split(1), names)], QUARTET_TILE_SIDE)


def collect_synthesis_values(finished: FinishedSynthesis, image: Tensor) -> dict[str, Any]:
    """The numbers of a result: the images, the scores, and the tensors of the evidence."""
    scores = finished.ascent[1].cpu()
    evidence = finished.evidence
    is_single = len(image) == 1
    values: dict[str, Any] = {
        "image": image,
        "scores": scores[:, 0] if is_single else scores,
        "score": float(evidence.score[0]) if is_single else evidence.score,
    }
    for name, value in vars(evidence).items():
        if isinstance(value, Tensor) and name != "score":
            values[name] = value
    return values


def blend_over_checkerboard(image: Tensor, opacity: Tensor) -> Tensor:
    """Images blended over gray 0.5, over a checkerboard instead; `opacity` is N×H×W."""
    height, width = image.shape[-2:]
    square_side = max(2, min(height, width) // 16)
    row_parity = torch.arange(height)[:, None] // square_side
    column_parity = torch.arange(width) // square_side
    checkerboard = 0.1 * ((row_parity + column_parity) % 2) - 0.05
    return (image + (1 - opacity[:, None]) * checkerboard).clamp(0, 1)


# ── captions ──


def describe_synthesis(model: Model, finished: FinishedSynthesis) -> str:
    """The caption of the image or sheet: what was maximized, and the evidence."""
    image, scores = finished.ascent
    layer, units = finished.objective_units
    evidence = finished.evidence.describe_evidence()
    if len(image) == 1:
        caption = (
            f"{finished.objective}: {evidence} It started at {float(scores[0, 0]):.2f} "
            f"and took {len(scores)} steps."
        )
    else:
        names = format_unit_names(model, layer, units)
        caption = (
            f"{len(image)} units of {layer}, row by row: {names}: {evidence} "
            f"Each took {len(scores)} steps."
        )
    if finished.opacity is not None:
        caption += (
            " The checkerboard shows through where the image does little for the score: "
            f"{float(finished.opacity.mean()):.0%} is opaque."
        )
    dead_units = [
        str(unit)
        for unit, received in zip(units, finished.ascent.received_gradient.tolist(), strict=False)
        if not received
    ]
    if dead_units:
        caption += (
            f" No gradient ever reached the image of {', '.join(dead_units)}: "
            "a dead unit, left as it started."
        )
    if finished.ascent.stop_reason:
        caption += f" Note: {finished.ascent.stop_reason}."
    return caption


def format_unit_names(model: Model, layer: str, units: tuple[int, ...]) -> str:
    """The units in words: classes by name, consecutive numbers by the first and last."""
    if layer == "logits":
        return ", ".join(model.labels[unit] for unit in units)
    are_consecutive = units == tuple(range(units[0], units[-1] + 1))
    if are_consecutive and len(units) > 1:
        return f"{units[0]} to {units[-1]}"
    return ", ".join(map(str, units))


def describe_response_ratio(ratio: Tensor) -> str:
    """How the units respond to their images, beside natural ones."""
    median = float(ratio.median())
    if not median:
        return "No natural image drives the unit above zero."
    median_note = " (median over the images)" if len(ratio) > 1 else ""
    return (
        f"At its strongest position the unit responds {median:.2f} times as strongly as on the "
        f"best natural image{median_note}."
    )


# ── beside natural images ──


def compose_exemplar_figure(
    exemplars: NaturalExemplars, picture: Tensor, ratio: Tensor, facets: Sequence[Facet]
) -> tuple[PictureRows, str]:
    """Images N×3×H×W beside the natural patches of their units or facets, and the caption."""
    response = describe_response_ratio(ratio)
    image_total = f"{exemplars.scan.images:,}"
    if facets:
        rows = [
            make_facet_row(exemplars, picture, index, float(ratio[index]), facet)
            for index, facet in enumerate(facets)
        ]
        caption = (
            "Each synthesis, the mean that it started from, and the natural images nearest to the "
            "centre of its group, with their activation and class. The groups are those of the "
            f"unit's {len(exemplars.top_images[0].ids)} strongest of {image_total} images, by "
            f"k-means on the network's own features. {response}"
        )
        return PictureRows(rows, ROW_TILE_SIDE), caption

    fits_in_rows = len(picture) <= MAX_EXEMPLAR_ROWS
    if fits_in_rows:
        rows = [
            make_exemplar_row(exemplars, picture, index, float(ratio[index]))
            for index in range(len(picture))
        ]
    else:
        rows = make_quartet_rows(exemplars, picture, ratio)
    tile_side = ROW_TILE_SIDE if fits_in_rows else QUARTET_TILE_SIDE
    synthesis_place = "first in its row" if fits_in_rows else "upper left of its four"
    caption = (
        f"Each synthesis ({synthesis_place}) with the parts of {image_total} natural images that "
        f"drive its unit most, gray beyond an image, with their activation and class. {response} "
        "What the natural images share and the synthesis lacks, the synthesis does not show."
    )
    return PictureRows(rows, tile_side), caption


def make_exemplar_row(
    exemplars: NaturalExemplars, picture: Tensor, picture_index: int, ratio: float
) -> FigureRow:
    """One image and its unit's strongest natural patches, under the unit's name."""
    example_count = min(EXEMPLAR_COLUMNS, len(exemplars.top_images[picture_index].ids))
    examples = exemplars.load_examples(picture_index, torch.arange(example_count))
    synthesis = picture[picture_index : picture_index + 1]
    tiles = [synthesis, *(resize_for_sheet(patch) for patch in examples.patches)]
    tile_captions = [f"synthesis\n× {ratio:.2f}", *examples.describe_examples(exemplars.scan)]
    return FigureRow(exemplars.describe_unit(picture_index), tiles, tile_captions, lead_count=1)


def make_facet_row(
    exemplars: NaturalExemplars, picture: Tensor, picture_index: int, ratio: float, facet: Facet
) -> FigureRow:
    """One image, the mean that it started from, and whole images of its group."""
    examples = exemplars.load_examples(picture_index, facet.indices[: EXEMPLAR_COLUMNS - 1])
    synthesis = picture[picture_index : picture_index + 1]
    tiles = [synthesis, facet.start_image[None], *examples.images.split(1)]
    tile_captions = [
        f"synthesis\n× {ratio:.2f}",
        "start\n(a mean)",
        *examples.describe_examples(exemplars.scan),
    ]
    title = (
        f"{exemplars.describe_unit(picture_index)}, facet {facet.index + 1} of "
        f"{len(facet.centers)}: {facet.image_count} images"
    )
    return FigureRow(title, tiles, tile_captions, lead_count=2)


def make_quartet_rows(
    exemplars: NaturalExemplars, picture: Tensor, ratio: Tensor
) -> list[FigureRow]:
    """Every image and its unit's three strongest patches in one square, and the ratio under it."""
    tiles: list[Tensor] = []
    tile_captions: list[str] = []
    for index, image_ratio in enumerate(ratio.tolist()):
        patch_count = min(3, len(exemplars.top_images[index].ids))
        patches = exemplars.load_examples(index, torch.arange(patch_count)).patches
        resized = [cover_center(patch, *picture.shape[-2:]) for patch in patches]
        quartet = torch.cat([picture[index : index + 1], *resized])
        tiles.append(make_contact_sheet(quartet, columns=2))
        tile_captions.append(f"{exemplars.describe_unit(index)}\n× {image_ratio:.2f}")
    rows: list[FigureRow] = []
    for start in range(0, len(tiles), EXEMPLAR_COLUMNS):
        end = start + EXEMPLAR_COLUMNS
        rows.append(FigureRow("", tiles[start:end], tile_captions[start:end]))
    return rows
