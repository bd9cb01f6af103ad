"""A recipe, carried out again."""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from sightline.errors import SightlineError, make_unknown_name_error
from sightline.images.io import check_image, read_file_or_sample, resize_short_side
from sightline.methods import load_methods
from sightline.models.model import Model
from sightline.models.weights.checkpoint import hash_file
from sightline.models.zoo.reload import load_recipe_model
from sightline.registry.method import hash_tensor
from sightline.registry.progress import Step
from sightline.registry.result import Result


def again(
    recipe: str | Path | Mapping[str, Any],
    *,
    model: Model | None = None,
    image: Tensor | None = None,
) -> Result:
    """Makes a result again from its recipe (a mapping, or the path of a `recipe.json`).

    `model` and `image` are needed only if the recipe does not say where they came from: for a module that was built in
    code, and a tensor. Raises SightlineError if weights or image are not the ones that the recipe was made with.
    """
    told = recipe if isinstance(recipe, Mapping) else read_recipe(Path(recipe))
    methods = load_methods()
    name = str(told.get("method"))
    if name not in methods:
        raise make_unknown_name_error("method", name, methods)
    method = methods[name]
    knobs: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in told["knobs"].items()
    }
    for key, value in knobs.items():
        if any(isinstance(item, dict) for item in (value if isinstance(value, tuple) else [value])):
            raise SightlineError(
                f"the recipe's {key} was a tensor, not a file; call {name} with it yourself"
            )
    prevent_store_writes(knobs)
    if "stopped_after" in told:
        knobs["callback"] = partial(has_reached_stop, told["stopped_after"])
    model = model or load_recipe_model(told["model"])
    given = bool(method.subject) and (
        method.subject in told or (method.subject == "image" and image is not None)
    )
    if method.subject and not given and not method.subject_optional:
        raise SightlineError(f"this recipe lacks its {method.subject}")
    if method.subject == "image" and given:
        return method.function(
            model, load_recipe_image(told.get("image", {}), model, image), **knobs
        )
    return (
        method.function(model, told[method.subject], **knobs)
        if given
        else method.function(model, **knobs)
    )


def prevent_store_writes(parameters: dict[str, Any]) -> None:
    """Leaves out of a recipe's knobs what would write where the recipe says: a pass over `folder` into `store`.

    A store that is there is read as it is; else the pass goes into the cache of the one who repeats.
    """
    if parameters.get("folder") is not None and parameters.get("store") is not None:
        del parameters["folder" if Path(parameters["store"]).exists() else "store"]


def has_reached_stop(last_index: int, step: Step) -> bool:
    """The callback that stops a run where the recipe's was stopped."""
    return step.index >= last_index


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
    if (
        not isinstance(told, dict)
        or "method" not in told
        or not all(isinstance(told.get(part), dict) for part in ("knobs", "model"))
    ):
        raise SightlineError(f"{path} is not a recipe: method, knobs and model are expected")
    return told


def load_recipe_image(
    image_recipe: Mapping[str, Any], model: Model, supplied_image: Tensor | None
) -> Tensor:
    """The recipe's image: the given one, else a file or sample, fitted to the network as before."""
    if supplied_image is None and "path" not in image_recipe:
        raise SightlineError("the recipe's image was a tensor, not a file; give it with image=")
    image = (
        prepare_network_input(
            model,
            read_file_or_sample(image_recipe["path"]),
            image_recipe.get("size"),
            whole=bool(image_recipe.get("whole")),
        )
        if supplied_image is None
        else check_image(supplied_image)
    )
    # A file is known by its bytes: resizing may differ in the last bits from processor to processor.
    same = (
        hash_tensor(image) == image_recipe.get("sha256")
        if supplied_image is not None
        else hash_source_file(image_recipe["path"]) == image_recipe.get("file_sha256")
    )
    if not same:
        named = "this tensor" if supplied_image is not None else image_recipe["path"]
        raise SightlineError(
            f"{named} is not the image that the recipe was made with (its content differs)"
        )
    return image


def hash_source_file(source: str) -> str | None:
    """SHA-256 of a file; None for a sample, which comes with its library."""
    return hash_file(Path(source)) if Path(source).is_file() else None


def resolve_source(source: str) -> str:
    """A sample's name, or the whole path of a file."""
    return str(Path(source).resolve()) if Path(source).exists() else source


def prepare_network_input(model: Model, image: Tensor, size: int | None, *, whole: bool) -> Tensor:
    """What a network is shown of a picture: its square middle, or the whole at a short side of `size` (the network's own by default)."""
    return resize_short_side(image, size or model.size) if whole else model.fit(image, size)


def record_image_source(
    result: Result, source: str, size: int | None, *, whole: bool = False
) -> Result:
    """The result with the whereabouts of its image in the recipe, so that it can be made again: a sample's name or a whole path."""
    told = dict(
        result.recipe["image"],
        path=resolve_source(source),
        size=size,
        whole=whole,
        file_sha256=hash_source_file(source),
    )
    return replace(result, recipe={**result.recipe, "image": told})
