"""The arguments of a synthesis: its objective or the units of a layer, and its preset."""

import re
from dataclasses import replace

from sightline.errors import SightlineError
from sightline.methods.synthesis.presets import SYNTHESIS_PRESETS, SynthesisPreset
from sightline.models.heads.target_text import TARGET_TYPES, TargetChoice, make_target
from sightline.models.heads.targets import Target
from sightline.models.model import Model
from sightline.optim.objectives.objective import Objective, channel, logit
from sightline.optim.objectives.parser import parse_objective

# The preset for a start, where none is named.
PRESET_BY_START = {
    "gray": "lecture",
    "zero": "lecture",
    "facets": "facets",
    "generator": "generator",
}

# Units of a layer that are shown where none are named.
DEFAULT_UNIT_COUNT = 16

# Presets of these starts can't begin anywhere else.
FIXED_STARTS = ("phase", "photo", "generator")


# What a synthesis may be asked for.
SynthesisSubject = Objective | TargetChoice


def resolve_subject(
    model: Model, subject: SynthesisSubject, layer: str | None, units: str | None
) -> tuple[Model, Objective]:
    """The objective that was asked for, and the model whose scores it reads.

    A target's score stands in the place of the class scores, and its text names the objective.

    Raises SightlineError for an objective together with a layer or units, for anything that is no
    objective or target, and for the classes of a network that has none.
    """
    if str(subject) and (layer or units):
        raise SightlineError(
            f"the objective is {subject}, and a layer or units are given too; leave out one"
        )
    target = find_target(subject)
    if target is not None:
        return model.with_target(target), replace(logit(0), text=str(target))
    objective = resolve_objective(model, subject, layer, units)
    if "logits" in objective.layers:
        model.require_classes("synthesis of a class")
    return model, objective


def find_target(subject: SynthesisSubject) -> Target | None:
    """The target that is asked for; None for an objective.

    Raises SightlineError for a text that is nearly a target's.
    """
    if isinstance(subject, Target):
        return subject
    if callable(subject):
        return make_target(subject)
    if not isinstance(subject, str):
        return None
    function_name = subject.partition("(")[0].strip()
    if function_name == "score" and "(" in subject:
        raise SightlineError(
            f"{subject} is a function of your own, which a text can't hold; "
            "call synthesis with the function"
        )
    is_target = function_name in TARGET_TYPES and subject.rstrip().endswith(")")
    return make_target(subject) if is_target else None


def resolve_objective(
    model: Model, objective: object, layer: str | None, units: str | None
) -> Objective:
    """The objective that was given, or that of the units of a layer.

    Raises SightlineError for anything that is no objective.
    """
    if isinstance(objective, Objective):
        return objective
    if not isinstance(objective, str):
        raise SightlineError(
            "synthesis takes an objective, such as sl.logit('goose') or its text, or a target, "
            f"such as sl.unit('layer4', 7), not a {type(objective).__name__}"
        )
    if objective:
        return parse_objective(objective)

    name = model.layer(layer or "logits")
    unit_count = model.shape(name)[0]
    if units:
        unit_indices = parse_unit_ranges(units, unit_count)
    else:
        unit_indices = tuple(range(min(DEFAULT_UNIT_COUNT, unit_count)))
    return logit(unit_indices) if name == "logits" else channel(layer or name, unit_indices)


def parse_unit_ranges(units: str, unit_count: int) -> tuple[int, ...]:
    """The unit indices of a text such as "0-3,7".

    Raises SightlineError for other text, and for units that the layer does not have.
    """
    indices: list[int] = []
    for text in units.replace(" ", "").split(","):
        match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", text)
        if match is None:
            raise SightlineError(
                f"units is {units!r}; write numbers and ranges, such as 0-63 or 3,5,8"
            )
        first = int(match[1])
        last = int(match[2] or match[1])
        if last >= unit_count or first > last:
            raise SightlineError(f"units is {units!r}; this layer has units 0 to {unit_count - 1}")
        indices += range(first, last + 1)
    return tuple(indices)


def find_objective_units(model: Model, objective: Objective) -> tuple[str, tuple[int, ...]]:
    """The layer and the unit indices that an objective is about; class names are looked up."""
    layer, units = objective.units
    if layer == "logits" and units:
        return "logits", tuple(map(model.index, units))
    if units:
        return layer, tuple(map(int, units))
    # An objective of several terms still names its class in its text.
    named_class = re.match(r"logit\((.+?)\)", objective.text)
    if named_class is None:
        return layer, ()
    return "logits", (model.index(named_class[1].strip("'\"")),)


def choose_synthesis_preset(
    preset_name: str, start: str, photo: object, store: object, focus: str
) -> SynthesisPreset:
    """The preset with the start and focus that were asked for.

    Raises SightlineError where the preset, start, focus, photo and store don't go together.
    """
    if preset_name == "auto":
        default = PRESET_BY_START.get(start, "smooth")
        preset_name = default if photo is None else "accentuation"
    preset = SYNTHESIS_PRESETS[preset_name]

    check_photo(preset, preset_name, photo)
    check_focus(preset, preset_name, focus)
    if focus != "auto":
        preset = replace(preset, focus=focus)
    if start not in ("auto", preset.start):
        preset = replace_preset_start(preset, preset_name, start, photo)
    if preset.start == "facets" and store is None:
        raise SightlineError(
            "facets are groups of a unit's natural images: name a scan of them with store="
        )
    return preset


def check_photo(preset: SynthesisPreset, preset_name: str, photo: object) -> None:
    """Raises SightlineError for a preset without the photograph it needs, or with one too many."""
    if preset.start == "photo":
        if photo is None:
            raise SightlineError(f"preset {preset_name!r} needs a photo=")
        return
    can_start_from_photo = preset.start in ("fourier", "gray")
    if photo is not None and not can_start_from_photo:
        raise SightlineError(
            f"preset {preset_name!r} does not start from a photograph; leave out photo"
        )


def check_focus(preset: SynthesisPreset, preset_name: str, focus: str) -> None:
    """Raises SightlineError for transparency on anything but a spectrum."""
    if focus != "alpha":
        return
    if preset.is_pixel_based or preset.start == "generator":
        raise SightlineError(
            f"focus='alpha' goes with a spectrum, and preset {preset_name!r} optimizes "
            f"{name_optimized(preset)}; choose smooth"
        )


def name_optimized(preset: SynthesisPreset) -> str:
    """What a preset optimizes, in words."""
    if preset.start == "generator":
        return "a code"
    return "pixels" if preset.is_pixel_based else "a spectrum"


def replace_preset_start(
    preset: SynthesisPreset, preset_name: str, start: str, photo: object
) -> SynthesisPreset:
    """The preset from another start; raises SightlineError for a start of another kind."""
    start_is_pixel_based = start in ("gray", "zero")
    fits = preset.is_pixel_based == start_is_pixel_based and preset.start not in FIXED_STARTS
    facets_of_a_photo = start == "facets" and photo is not None
    if not fits or start == "generator" or facets_of_a_photo:
        raise SightlineError(
            f"preset {preset_name!r} starts from {preset.start!r}; "
            f"start={start!r} does not go with it"
        )
    return replace(preset, start=start, noise=0.0 if start == "zero" else preset.noise)


def override_preset_constants(
    preset: SynthesisPreset,
    lr: float | None,
    decay: float | None,
    blur: float | None,
    clip: float | None,
) -> SynthesisPreset:
    """The preset with the given constants instead of its own.

    Raises SightlineError for a constant that only works on pixels where none are optimized.
    """
    pixel_constants = {"decay": decay, "blur": blur, "clip": clip}
    if preset.start == "generator":
        del pixel_constants["decay"]  # a code has a decay too
    given_names = [name for name, value in pixel_constants.items() if value is not None]
    if given_names and not preset.is_pixel_based:
        raise SightlineError(
            f"{given_names[0]} works on pixels, but start={preset.start!r} optimizes "
            f"{name_optimized(preset)}; choose start='gray'"
        )
    half_clip = None if clip is None else clip / 2
    constants = {"lr": lr, "decay": decay, "sigma": blur, "small": half_clip, "idle": half_clip}
    changes = {name: value for name, value in constants.items() if value is not None}
    return replace(preset, **changes)
