"""Makes a result again from its recipe, and records in a recipe where its image came from."""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from sightline.errors import SightlineError, make_unknown_name_error
from sightline.images.io import read_file_or_sample
from sightline.images.transforms import resize_short_side
from sightline.images.validation import check_image
from sightline.methods import load_methods
from sightline.models.model import Model
from sightline.models.weights.checkpoint import hash_file
from sightline.models.zoo.reload import load_recipe_model
from sightline.registry.method import Method, hash_tensor
from sightline.registry.progress import Step
from sightline.registry.result import Result

# ── making a result again ──


def again(
    recipe: str | Path | Mapping[str, Any],
    *,
    model: Model | None = None,
    image: Tensor | None = None,
) -> Result:
    """Makes a result again from its recipe (a mapping, or the path of a `recipe.json`).

    `model` and `image` are needed only where the recipe can't name them: for a module that was
    built in code, and for a tensor.

    Raises SightlineError if the weights or the image are not those of the recipe, and for a recipe
    that can't be read.
    """
    content = recipe if isinstance(recipe, Mapping) else read_recipe(Path(recipe))
    method = _find_recipe_method(content)

    parameters = _read_recipe_parameters(method, content["knobs"])
    prevent_store_writes(parameters)
    if "stopped_after" in content:
        parameters["callback"] = partial(has_reached_stop, content["stopped_after"])

    model = model or load_recipe_model(content["model"])
    subject = _load_recipe_subject(method, content, model, image)
    return method.function(model, *subject, **parameters)


def read_recipe(path: Path) -> Mapping[str, Any]:
    """The content of a `recipe.json`; raises SightlineError for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SightlineError(f"{path} can't be read as a recipe ({error})") from error
    if isinstance(content, dict) and "sections" in content:
        raise SightlineError(
            f"{path} is a report's recipe; each section has its own in the folder of its name, "
            "or run sightline tour again"
        )
    if not _is_recipe(content):
        raise SightlineError(f"{path} is not a recipe: method, knobs and model are expected")
    return content


def has_reached_stop(last_index: int, step: Step) -> bool:
    """The callback that stops a run at the step at which the recipe's run was stopped."""
    return step.index >= last_index


def prevent_store_writes(parameters: dict[str, Any]) -> None:
    """Removes what would write a scan of `folder` to the recipe's `store`.

    A store that exists is read as it is; otherwise the scan goes to the user's own cache.
    """
    store = parameters.get("store")
    if store is None or parameters.get("folder") is None:
        return
    if Path(store).exists():
        del parameters["folder"]
    else:
        del parameters["store"]


def load_recipe_image(
    image_recipe: Mapping[str, Any], model: Model, supplied_image: Tensor | None
) -> Tensor:
    """The recipe's image: the supplied one, or its file or sample, fitted to the network again.

    Raises SightlineError if its content is not that of the recipe.
    """
    if supplied_image is not None:
        image = check_image(supplied_image)
        is_same = hash_tensor(image) == image_recipe.get("sha256")
        name = "this tensor"
    elif "path" in image_recipe:
        name = image_recipe["path"]
        picture = read_file_or_sample(name)
        is_whole = bool(image_recipe.get("whole"))
        image = prepare_network_input(model, picture, image_recipe.get("size"), whole=is_whole)
        # A file is compared by its bytes: resizing may differ in the last bits by processor.
        is_same = hash_source_file(name) == image_recipe.get("file_sha256")
    else:
        raise SightlineError("the recipe's image was a tensor, not a file; give it with image=")
    if not is_same:
        raise SightlineError(
            f"{name} is not the image that the recipe was made with (its content differs)"
        )
    return image


def _is_recipe(content: Any) -> bool:
    """Whether JSON content has the parts of a recipe."""
    if not isinstance(content, dict) or "method" not in content:
        return False
    sections = cast("dict[str, Any]", content)
    return all(isinstance(sections.get(name), dict) for name in ("knobs", "model"))


def _find_recipe_method(content: Mapping[str, Any]) -> Method:
    name = str(content.get("method"))
    methods = load_methods()
    if name not in methods:
        raise make_unknown_name_error("method", name, methods)
    return methods[name]


def _read_recipe_parameters(method: Method, serialized: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters as the method takes them: JSON's lists are tuples.

    Raises SightlineError for a tensor, of which the recipe holds only the digest.
    """
    parameters: dict[str, Any] = {}
    for name, value in serialized.items():
        items = cast("list[Any]", value) if isinstance(value, list) else [value]
        if any(isinstance(item, dict) for item in items):
            raise SightlineError(
                f"the recipe's {name} was a tensor, not a file; call {method.name} with it yourself"
            )
        parameters[name] = tuple(items) if isinstance(value, list) else value
    return parameters


def _load_recipe_subject(
    method: Method, content: Mapping[str, Any], model: Model, supplied_image: Tensor | None
) -> list[Any]:
    """The method's second argument, empty if it takes none or was run without it."""
    if not method.subject:
        return []
    is_image = method.subject == "image"
    if method.subject not in content and not (is_image and supplied_image is not None):
        if not method.subject_optional:
            raise SightlineError(f"this recipe lacks its {method.subject}")
        return []
    if is_image:
        return [load_recipe_image(content.get("image", {}), model, supplied_image)]
    return [content[method.subject]]


# ── images by name ──


def prepare_network_input(model: Model, image: Tensor, size: int | None, *, whole: bool) -> Tensor:
    """The image as the network takes it: its central square, or the whole image.

    `size` is the side of the square, or the short side of the whole image.
    It is the network's own by default.
    """
    if whole:
        return resize_short_side(image, size or model.size)
    return model.fit(image, size)


def record_image_source(
    result: Result, source: str, size: int | None, *, whole: bool = False
) -> Result:
    """The result with the source of its image in the recipe, so that it can be made again."""
    image_recipe = {
        **result.recipe["image"],
        "path": resolve_source(source),
        "size": size,
        "whole": whole,
        "file_sha256": hash_source_file(source),
    }
    return replace(result, recipe={**result.recipe, "image": image_recipe})


def resolve_source(source: str) -> str:
    """The absolute path of a file, or the name of a sample."""
    path = Path(source)
    return str(path.resolve()) if path.exists() else source


def hash_source_file(source: str) -> str | None:
    """SHA-256 of a file; None for a sample, which comes with its library."""
    path = Path(source)
    return hash_file(path) if path.is_file() else None
