"""What a synthesis is asked for: the objective or the units of a layer, and the preset with the constants that are given."""

import re
from dataclasses import replace

from sightline.errors import SightlineError
from sightline.methods.synthesis.presets import SYNTHESIS_PRESETS, SynthesisPreset
from sightline.models.model import Model
from sightline.optim.objectives.objective import Objective, channel, logit
from sightline.optim.objectives.parser import parse_objective

# The preset that goes with a start, where none is named.
PRESET_BY_START = {
    "gray": "lecture",
    "zero": "lecture",
    "facets": "facets",
    "generator": "generator",
}


def resolve_objective(
    model: Model, objective: Objective | str, layer: str | None, units: str | None
) -> Objective:
    """The objective, or that of a layer's units."""
    if not isinstance(objective, (Objective, str)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise SightlineError(
            f"synthesis takes an objective, such as sl.logit('goose') or its text, not a {type(objective).__name__}"
        )
    if str(objective) and (layer or units):
        raise SightlineError(
            f"the objective is {objective} and a layer or units are given; leave out one of them"
        )
    if str(objective):
        return parse_objective(objective) if isinstance(objective, str) else objective
    name = model.layer(layer or "logits")
    total = model.shape(name)[0]
    numbers = parse_unit_ranges(units, total) if units else tuple(range(min(16, total)))
    return logit(numbers) if name == "logits" else channel(layer or name, numbers)


def parse_unit_ranges(units: str, unit_count: int) -> tuple[int, ...]:
    """The numbers of "0-3,7"; raises SightlineError for other text and numbers that the layer doesn't have."""
    numbers: list[int] = []
    for part in units.replace(" ", "").split(","):
        if not (found := re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part)):
            raise SightlineError(
                f"units is {units!r}; write numbers and ranges, such as 0-63 or 3,5,8"
            )
        first, last = int(found[1]), int(found[2] or found[1])
        if last >= unit_count or first > last:
            raise SightlineError(f"units is {units!r}; this layer has units 0 to {unit_count - 1}")
        numbers += range(first, last + 1)
    return tuple(numbers)


def find_objective_units(model: Model, objective: Objective) -> tuple[str, tuple[int, ...]]:
    """The layer and units that the objective is about; classes that it names by their labels are looked up."""
    if objective.units[0] == "logits" and objective.units[1]:
        return "logits", tuple(map(model.index, objective.units[1]))
    if objective.units[1] or not (named := re.match(r"logit\((.+?)\)", objective.text)):
        return objective.units[0], tuple(map(int, objective.units[1]))
    return "logits", (model.index(named[1].strip("'\"")),)


def choose_synthesis_preset(
    preset_name: str, start: str, photo: object, store: object, focus: str
) -> SynthesisPreset:
    """The preset with the start and focus that go with it; raises SightlineError where they don't fit."""
    auto = "accentuation" if photo is not None else PRESET_BY_START.get(start, "smooth")
    name = auto if preset_name == "auto" else preset_name
    kept = SYNTHESIS_PRESETS[name]
    if (kept.start == "photo") != (photo is not None) and not (
        photo is not None and kept.start in ("fourier", "gray")
    ):
        raise SightlineError(
            f"preset {name!r} {'needs a photo=' if kept.start == 'photo' else 'does not start from a photograph; leave out photo'}"
        )
    if focus == "alpha" and (kept.is_pixel_based or kept.start == "generator"):
        moved = "pixels" if kept.is_pixel_based else "a code"
        raise SightlineError(
            f"focus='alpha' goes with a spectrum, and preset {name!r} moves {moved}; choose smooth"
        )
    kept = kept if focus == "auto" else replace(kept, focus=focus)
    if start not in ("auto", kept.start):
        kept = replace_preset_start(kept, name, start, photo)
    if kept.start == "facets" and store is None:
        raise SightlineError(
            "facets are groups of a unit's natural images: name a scan of them with store="
        )
    return kept


def replace_preset_start(
    preset: SynthesisPreset, preset_name: str, start: str, photo: object
) -> SynthesisPreset:
    """The preset from another start; raises SightlineError where that is of another kind."""
    fits = preset.is_pixel_based == (start in ("gray", "zero")) and preset.start not in (
        "phase",
        "photo",
        "generator",
    )
    if not fits or start == "generator" or (start == "facets" and photo is not None):
        raise SightlineError(
            f"preset {preset_name!r} starts from {preset.start!r}; start={start!r} does not go with it"
        )
    return replace(preset, start=start, noise=0.0 if start == "zero" else preset.noise)


def override_preset_constants(
    preset: SynthesisPreset,
    lr: float | None,
    decay: float | None,
    blur: float | None,
    clip: float | None,
) -> SynthesisPreset:
    """The preset with the constants that are given instead of its own."""
    told = {"decay": None if preset.start == "generator" else decay, "blur": blur, "clip": clip}
    if not preset.is_pixel_based and (
        refused := [name for name, value in told.items() if value is not None]
    ):
        moved = "a code" if preset.start == "generator" else "a spectrum"
        raise SightlineError(
            f"{refused[0]} works on pixels, but start={preset.start!r} moves {moved}; choose start='gray'"
        )
    given = {
        "lr": lr,
        "decay": decay,
        "sigma": blur,
        "small": None if clip is None else clip / 2,
        "idle": None if clip is None else clip / 2,
    }
    return replace(preset, **{name: value for name, value in given.items() if value is not None})
