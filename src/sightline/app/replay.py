"""Makes a result again from its recipe, and records in a recipe where its image came from."""

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sightline.app.recipe import (
    ImageRecipe,
    Recipe,
    parse_recipe,
    read_parameters,
    read_recipe,
)
from sightline.errors import SightlineError, escape_for_display
from sightline.images.io.pictures import read_alpha, read_file_or_sample
from sightline.images.transforms import resize_short_side
from sightline.images.validation import check_image
from sightline.models.model import Model
from sightline.models.weights.checkpoint import hash_file
from sightline.models.zoo.reload import load_recipe_model
from sightline.registry.method import Method, hash_tensor
from sightline.registry.progress import Step
from sightline.registry.result import Result

# Their `values["image"]` is the given picture, repainted pixel by pixel.
REPAINTING_METHODS = ("style", "deepdream")

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
    if isinstance(recipe, (str, Path)):
        return run_recipe(read_recipe(Path(recipe)), model, image)
    return run_recipe(parse_recipe(recipe), model, image)


def run_recipe(recipe: Recipe, model: Model | None = None, image: Tensor | None = None) -> Result:
    """Makes the result of a checked recipe; see `again`."""
    method = recipe.find_method()
    parameters = read_parameters(recipe)
    prevent_store_writes(parameters)
    if recipe.stopped_after is not None:
        if "callback" not in method.parameters:
            raise SightlineError(f"the recipe was stopped early, and {method.name} can't be")
        parameters["callback"] = partial(has_reached_stop, recipe.stopped_after)

    model = model or load_recipe_model(recipe.model)
    subject = _load_recipe_subject(method, recipe, model, image)
    result = method.function(model, *subject, **parameters)
    if recipe.image is None or recipe.image.path is None or image is not None:
        return result
    return keep_transparency(
        result, model, recipe.image.path, recipe.image.size, whole=recipe.image.whole
    )


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
    if os.path.exists(store):
        del parameters["folder"]
    else:
        del parameters["store"]


def load_recipe_image(
    image_recipe: ImageRecipe, model: Model, supplied_image: Tensor | None
) -> Tensor:
    """The recipe's image: the supplied one, or its file or sample, fitted to the network again.

    Raises SightlineError if its content is not that of the recipe.
    """
    path = image_recipe.path
    if supplied_image is not None:
        image = check_image(supplied_image, channels=model.channels)
        is_same = hash_tensor(image) == image_recipe.sha256
        name = "this tensor"
    elif path is not None:
        name = escape_for_display(path)
        picture = read_file_or_sample(path)
        image = prepare_network_input(model, picture, image_recipe.size, whole=image_recipe.whole)
        # A file is compared by its bytes: resizing may differ in the last bits by processor.
        is_same = hash_source_file(path) == image_recipe.file_sha256
    else:
        raise SightlineError("the recipe's image was a tensor, not a file; give it with image=")
    if not is_same:
        raise SightlineError(
            f"{name} is not the image that the recipe was made with (its content differs)"
        )
    return image


def _load_recipe_subject(
    method: Method, recipe: Recipe, model: Model, supplied_image: Tensor | None
) -> list[Any]:
    """The method's second argument, empty if it takes none or was run without it."""
    if method.subject == "image" and (recipe.image or supplied_image is not None):
        return [load_recipe_image(recipe.image or ImageRecipe(), model, supplied_image)]
    if method.subject == "objective" and recipe.objective is not None:
        return [recipe.objective]
    if method.subject and not method.subject_optional:
        raise SightlineError(f"this recipe lacks its {method.subject}")
    return []


# ── images by name ──


def prepare_network_input(model: Model, image: Tensor, size: int | None, *, whole: bool) -> Tensor:
    """The image as the network takes it: its central square, or the whole image.

    `size` is the side of the square, or the short side of the whole image.
    It is the network's own by default.
    """
    if whole:
        return resize_short_side(image, size or model.size)
    return model.fit(image, size)


def keep_transparency(
    result: Result, model: Model, source: str, size: int | None, *, whole: bool
) -> Result:
    """The result of a repainting method, with the picture alone where its source is transparent.

    The panel `image` then has the opacity of the source file as a fourth channel. The other panels,
    and results of other methods and files, stay as they are.
    """
    image = result.values.get("image")
    is_repainted = result.recipe.get("method") in REPAINTING_METHODS
    if not is_repainted or not isinstance(image, Tensor) or image.shape[1] != 3:
        return result
    alpha = read_alpha(source)
    if alpha is None:
        return result
    fitted = prepare_network_input(model, alpha.expand(-1, 3, -1, -1), size, whole=whole)
    picture = torch.cat([image[:1], fitted[:, :1].to(image)], 1)
    caption = "The picture alone, as transparent as the given one."
    return replace(
        result,
        panels={**result.panels, "image": picture},
        captions={**result.captions, "image": caption},
    )


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
