"""What a synthesis shows: the picture or the sheet of pictures, and the evidence in words."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ... import render
from ...ascend import AscentResult
from ...model import Model
from ...objective import Objective
from ...result import Result
from .evidence import SynthesisEvidence
from .exemplars import NaturalExemplars
from .facets import Facet, match_own_facets
from .plate import compose_exemplar_figure


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
    image, scores, evidence = finished.ascent[0].clamp(0, 1).cpu(), finished.ascent[1].cpu(), finished.evidence
    single = len(image) == 1
    values = {name: value for name, value in vars(evidence).items() if isinstance(value, Tensor) and name != "score"}
    score = float(evidence.score[0]) if single else evidence.score
    visible = image if finished.opacity is None else blend_over_checkerboard(image, finished.opacity)
    panels = {"synthesis": render.make_contact_sheet(render.enlarge_pixels(visible, 128 if single else 64))}
    captions = {"synthesis": describe_synthesis(model, finished)}
    if finished.opacity is not None:
        values["alpha"] = finished.opacity
    if finished.exemplars:
        values["ratio"] = finished.exemplars.compute_response_ratio(image)
        panels["natural"], captions["natural"] = compose_exemplar_figure(finished.exemplars, image, values["ratio"], finished.facets)
        if finished.facets:
            values["facet"] = match_own_facets(model, image, finished.facets)
            captions["natural"] += (
                f" To the network, {int(values['facet'].sum())} of {len(image)} are still nearest to their own group's middle."
            )
    movies = {f"run.{finished.movie_format}": torch.cat([*finished.frames, render.make_contact_sheet(image)])} if finished.frames else {}
    values = {"image": image, "scores": scores[:, 0] if single else scores, "score": score, **values}
    return Result(panels, values, captions, movies=movies)


def blend_over_checkerboard(image: Tensor, opacity: Tensor) -> Tensor:
    """Pictures that lie over gray 0.5, over a checkerboard instead, where `opacity` N×H×W lets it through."""
    height, width = image.shape[-2:]
    side = max(2, min(height, width) // 16)
    checks = (torch.arange(height)[:, None] // side + torch.arange(width) // side) % 2
    return (image + (1 - opacity[:, None]) * (0.1 * checks - 0.05)).clamp(0, 1)


def describe_synthesis(model: Model, finished: FinishedSynthesis) -> str:
    """What is shown, and what speaks for it, in words."""
    scores, single, (layer, units) = finished.ascent[1], len(finished.ascent[0]) == 1, finished.objective_units
    about = (
        str(finished.objective)
        if single
        else f"{len(finished.ascent[0])} units of {layer}, row by row: {format_unit_names(model, layer, units)}"
    )
    begun = f" It began at {float(scores[0, 0]):.2f} and took {len(scores)} steps." if single else f" Each took {len(scores)} steps."
    dead = [unit for unit, moved in zip(units, finished.ascent.received_gradient.tolist(), strict=False) if not moved]
    caption = f"{about}: {finished.evidence.describe_evidence()}{begun}"
    if finished.opacity is not None:
        caption += (
            f" The checkerboard shows through where the picture does little for the score: {float(finished.opacity.mean()):.0%} is opaque."
        )
    caption += f" No gradient ever reached the picture of {', '.join(map(str, dead))}: dead, and left as it started." if dead else ""
    return caption + (f" Note: {finished.ascent.stop_reason}." if finished.ascent.stop_reason else "")


def format_unit_names(model: Model, layer: str, units: tuple[int, ...]) -> str:
    """The units in words: classes by name, a run of numbers by its ends."""
    if layer == "logits":
        return ", ".join(model.labels[unit] for unit in units)
    run = units == tuple(range(units[0], units[-1] + 1))
    return f"{units[0]} to {units[-1]}" if run and len(units) > 1 else ", ".join(map(str, units))
