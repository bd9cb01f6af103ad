"""What a synthesis shows: the picture or the sheet of pictures, and the evidence in words."""

import torch
from torch import Tensor

from ... import render
from ...ascend import Ascent
from ...model import Model
from ...objective import Objective
from ...result import Result
from .evidence import Evidence


def shown(
    model: Model, aim: Objective, named: tuple[str, tuple[int, ...]], *, found: Ascent, evidence: Evidence, frames: list[Tensor]
) -> Result:
    """The picture or the sheet of pictures, with what speaks for them."""
    image, scores = found[0].clamp(0, 1).cpu(), found[1].cpu()
    single = len(image) == 1
    about = str(aim) if single else f"{len(image)} units of {named[0]}, row by row: {names(model, *named)}"
    begun = f" It began at {float(scores[0, 0]):.2f} and took {len(scores)} steps." if single else f" Each took {len(scores)} steps."
    dead = [unit for unit, moved in zip(named[1], found.moved.tolist(), strict=False) if not moved]
    caption = f"{about}: {evidence.sentence()}{begun}"
    caption += f" No gradient ever reached the picture of {', '.join(map(str, dead))}: dead, and left as it started." if dead else ""
    caption += f" Note: {found.note}." if found.note else ""
    values = {name: value for name, value in vars(evidence).items() if isinstance(value, Tensor) and name != "score"}
    score = float(evidence.score[0]) if single else evidence.score
    panel = render.sheet(render.enlarge(image, 128 if single else 64))
    movies = {"run": torch.cat([*frames, render.sheet(image)])} if frames else {}
    return Result(
        {"synthesis": panel},
        {"image": image, "scores": scores[:, 0] if single else scores, "score": score, **values},
        {"synthesis": caption},
        movies=movies,
    )


def names(model: Model, layer: str, units: tuple[int, ...]) -> str:
    """The units in words: classes by name, a run of numbers by its ends."""
    if layer == "logits":
        return ", ".join(model.labels[unit] for unit in units)
    run = units == tuple(range(units[0], units[-1] + 1))
    return f"{units[0]} to {units[-1]}" if run and len(units) > 1 else ", ".join(map(str, units))
