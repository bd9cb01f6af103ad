"""A recipe, carried out again."""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from . import image as images
from .ascend import Step
from .catalog import digest, load_methods
from .errors import SightlineError, unknown
from .model import Model
from .recipe import model_of
from .result import Result
from .weights import file_digest


def again(recipe: str | Path | Mapping[str, Any], *, model: Model | None = None, image: Tensor | None = None) -> Result:
    """Makes a result again from its recipe (a mapping, or the path of a `recipe.json`).

    `model` and `image` are needed only if the recipe does not say where they came from: for a module that was built in
    code, and a tensor. Raises SightlineError if weights or image are not the ones that the recipe was made with.
    """
    told = recipe if isinstance(recipe, Mapping) else read_recipe(Path(recipe))
    methods = load_methods()
    name = str(told.get("method"))
    if name not in methods:
        raise unknown("method", name, methods)
    method = methods[name]
    knobs: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in told["knobs"].items()}
    for key, value in knobs.items():
        if any(isinstance(item, dict) for item in (value if isinstance(value, tuple) else [value])):
            raise SightlineError(f"the recipe's {key} was a tensor, not a file; call {name} with it yourself")
    read_only(knobs)
    if "stopped_after" in told:
        knobs["callback"] = partial(reached, told["stopped_after"])
    model = model or model_of(told["model"])
    given = bool(method.subject) and (method.subject in told or (method.subject == "image" and image is not None))
    if method.subject and not given and not method.optional:
        raise SightlineError(f"this recipe lacks its {method.subject}")
    if method.subject == "image" and given:
        return method.function(model, image_of(told.get("image", {}), model, image), **knobs)
    return method.function(model, told[method.subject], **knobs) if given else method.function(model, **knobs)


def read_only(knobs: dict[str, Any]) -> None:
    """Leaves out of a recipe's knobs what would write where the recipe says: a pass over `folder` into `store`.

    A store that is there is read as it is; else the pass goes into the cache of the one who repeats.
    """
    if knobs.get("folder") is not None and knobs.get("store") is not None:
        del knobs["folder" if Path(knobs["store"]).exists() else "store"]


def reached(last: int, step: Step) -> bool:
    """The callback that stops a run where the recipe's was stopped."""
    return step.index >= last


def read_recipe(path: Path) -> Mapping[str, Any]:
    """The content of a `recipe.json`; raises SightlineError for anything else."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SightlineError(f"{path} can't be read as a recipe ({error})") from error
    if isinstance(told, dict) and "sections" in told:
        raise SightlineError(
            f"{path} is a report's recipe; each section has its own in the folder of its name, or run sightline tour again"
        )
    if not isinstance(told, dict) or "method" not in told or not all(isinstance(told.get(part), dict) for part in ("knobs", "model")):
        raise SightlineError(f"{path} is not a recipe: method, knobs and model are expected")
    return told


def image_of(told: Mapping[str, Any], model: Model, given: Tensor | None) -> Tensor:
    """The recipe's image: the given one, else a file or sample, fitted to the network as before."""
    if given is None and "path" not in told:
        raise SightlineError("the recipe's image was a tensor, not a file; give it with image=")
    image = (
        framed(model, images.find(told["path"]), told.get("size"), whole=bool(told.get("whole"))) if given is None else images.check(given)
    )
    # A file is known by its bytes: resizing may differ in the last bits from processor to processor.
    same = digest(image) == told.get("sha256") if given is not None else content(told["path"]) == told.get("file_sha256")
    if not same:
        named = "this tensor" if given is not None else told["path"]
        raise SightlineError(f"{named} is not the image that the recipe was made with (its content differs)")
    return image


def content(source: str) -> str | None:
    """SHA-256 of a file; None for a sample, which comes with its library."""
    return file_digest(Path(source)) if Path(source).is_file() else None


def whereabouts(source: str) -> str:
    """A sample's name, or the whole path of a file."""
    return str(Path(source).resolve()) if Path(source).exists() else source


def framed(model: Model, image: Tensor, size: int | None, *, whole: bool) -> Tensor:
    """What a network is shown of a picture: its square middle, or the whole at a short side of `size` (the network's own by default)."""
    return images.short_side(image, size or model.size) if whole else model.fit(image, size)


def located(result: Result, source: str, size: int | None, *, whole: bool = False) -> Result:
    """The result with the whereabouts of its image in the recipe, so that it can be made again: a sample's name or a whole path."""
    told = dict(result.recipe["image"], path=whereabouts(source), size=size, whole=whole, file_sha256=content(source))
    return replace(result, recipe={**result.recipe, "image": told})
