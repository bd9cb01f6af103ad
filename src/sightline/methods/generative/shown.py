"""What a synthesis shows: the picture or the sheet of pictures, and the evidence in words."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ... import render
from ...ascend import Ascent
from ...model import Model
from ...objective import Objective
from ...result import Result
from .evidence import Evidence
from .exemplars import Nature
from .facets import Facet, own
from .plate import panel


@dataclass(frozen=True)
class Made:
    """A synthesis: what was asked, what came of it, what speaks for it, and what may stand beside it."""

    aim: Objective
    named: tuple[str, tuple[int, ...]]
    found: Ascent
    evidence: Evidence
    frames: list[Tensor]
    movie: str
    nature: Nature | None
    facets: list[Facet]
    opacity: Tensor | None


def shown(model: Model, made: Made) -> Result:
    """The picture or the sheet of pictures, with what speaks for them, and beside natural images where there is a scan."""
    image, scores, evidence = made.found[0].clamp(0, 1).cpu(), made.found[1].cpu(), made.evidence
    single = len(image) == 1
    values = {name: value for name, value in vars(evidence).items() if isinstance(value, Tensor) and name != "score"}
    score = float(evidence.score[0]) if single else evidence.score
    visible = image if made.opacity is None else over_checks(image, made.opacity)
    panels = {"synthesis": render.sheet(render.enlarge(visible, 128 if single else 64))}
    captions = {"synthesis": told(model, made)}
    if made.opacity is not None:
        values["alpha"] = made.opacity
    if made.nature:
        values["ratio"] = made.nature.ratio(image)
        panels["natural"], captions["natural"] = panel(made.nature, image, values["ratio"], made.facets)
        if made.facets:
            values["facet"] = own(model, image, made.facets)
            captions["natural"] += (
                f" To the network, {int(values['facet'].sum())} of {len(image)} are still nearest to their own group's middle."
            )
    movies = {f"run.{made.movie}": torch.cat([*made.frames, render.sheet(image)])} if made.frames else {}
    values = {"image": image, "scores": scores[:, 0] if single else scores, "score": score, **values}
    return Result(panels, values, captions, movies=movies)


def over_checks(image: Tensor, opacity: Tensor) -> Tensor:
    """Pictures that lie over gray 0.5, over a checkerboard instead, where `opacity` N×H×W lets it through."""
    height, width = image.shape[-2:]
    side = max(2, min(height, width) // 16)
    checks = (torch.arange(height)[:, None] // side + torch.arange(width) // side) % 2
    return (image + (1 - opacity[:, None]) * (0.1 * checks - 0.05)).clamp(0, 1)


def told(model: Model, made: Made) -> str:
    """What is shown, and what speaks for it, in words."""
    scores, single, (layer, units) = made.found[1], len(made.found[0]) == 1, made.named
    about = str(made.aim) if single else f"{len(made.found[0])} units of {layer}, row by row: {names(model, layer, units)}"
    begun = f" It began at {float(scores[0, 0]):.2f} and took {len(scores)} steps." if single else f" Each took {len(scores)} steps."
    dead = [unit for unit, moved in zip(units, made.found.moved.tolist(), strict=False) if not moved]
    caption = f"{about}: {made.evidence.sentence()}{begun}"
    if made.opacity is not None:
        caption += (
            f" The checkerboard shows through where the picture does little for the score: {float(made.opacity.mean()):.0%} is opaque."
        )
    caption += f" No gradient ever reached the picture of {', '.join(map(str, dead))}: dead, and left as it started." if dead else ""
    return caption + (f" Note: {made.found.note}." if made.found.note else "")


def names(model: Model, layer: str, units: tuple[int, ...]) -> str:
    """The units in words: classes by name, a run of numbers by its ends."""
    if layer == "logits":
        return ", ".join(model.labels[unit] for unit in units)
    run = units == tuple(range(units[0], units[-1] + 1))
    return f"{units[0]} to {units[-1]}" if run and len(units) > 1 else ", ".join(map(str, units))
