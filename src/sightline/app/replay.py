"""Makes a result again from its recipe, and records in a recipe where its image came from."""

import os
from collections.abc import Mapping, Sequence
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
from sightline.images.transforms import crop_center, resize_short_side
from sightline.images.validation import check_image
from sightline.models.model import Model
from sightline.models.weights.checkpoint import hash_file
from sightline.models.zoo.reload import ablate_by_recipe, load_recipe_model
from sightline.registry.method import METHODS, Method, hash_tensor
from sightline.registry.progress import Callback, Step
from sightline.registry.result import Result

# A picture of which so much is used counts as whole: rounding took the rest.
MIN_WHOLE_SHARE = 0.98

# ── making a result again ──


def again(
    recipe: str | Path | Mapping[str, Any],
    *,
    model: Model | None = None,
    image: Tensor | None = None,
    device: str | None = None,
    callback: Callback | None = None,
) -> Result:
    """Makes a result again from its recipe (a mapping, or the path of a `recipe.json`).

    `model` and `image` are needed only where the recipe can't name them: for a module that was
    built in code, and for a tensor. `device` is where a network that the recipe names is run.
    `callback` is called with a `Step` after every step of a method that has steps.

    Raises SightlineError if the weights or the image are not those of the recipe, and for a recipe
    that can't be read.
    """
    is_file = isinstance(recipe, (str, Path))
    content = read_recipe(Path(recipe)) if is_file else parse_recipe(recipe)
    return run_recipe(content, model, image, device=device, callback=callback)


def run_recipe(
    recipe: Recipe,
    model: Model | None = None,
    image: Tensor | None = None,
    *,
    device: str | None = None,
    callback: Callback | None = None,
) -> Result:
    """Makes the result of a checked recipe; see `again`."""
    method = recipe.find_method()
    parameters = read_parameters(recipe)
    prevent_store_writes(parameters)
    has_steps = "callback" in method.parameters
    if recipe.stopped_after is not None and not has_steps:
        raise SightlineError(f"the recipe was stopped early, and {method.name} can't be")
    if recipe.stopped_after is not None:
        parameters["callback"] = partial(has_reached_stop, recipe.stopped_after, callback=callback)
    elif callback is not None and has_steps:
        parameters["callback"] = callback

    if model is None:
        model = load_recipe_model(recipe.model, device)
    else:
        model = ablate_by_recipe(model, recipe.model)
    subject = _load_recipe_subject(method, recipe, model, image)
    result = method.function(model, *subject, **parameters)
    if recipe.image is None or recipe.image.path is None or image is not None:
        return result
    if recipe.image.crop is not None:
        return result
    return keep_transparency(
        result, model, recipe.image.path, recipe.image.size, whole=recipe.image.whole
    )


def has_reached_stop(last_index: int, step: Step, *, callback: Callback | None = None) -> bool:
    """The callback that stops a run at the step at which the recipe's run was stopped.

    Another callback is called first, and may stop it earlier.
    """
    is_stopped = callback is not None and bool(callback(step))
    return is_stopped or step.index >= last_index


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
        image = prepare_network_input(
            model,
            picture,
            image_recipe.size,
            whole=image_recipe.whole,
            crop=image_recipe.crop,
        )
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


def prepare_network_input(
    model: Model, image: Tensor, size: int | None, *, whole: bool, crop: int | None = None
) -> Tensor:
    """The image as the network takes it: its central square, or the whole image.

    `size` is the side of the square, or the short side of the whole image.
    It is the network's own by default. With `crop` it is the middle of the image, at most so many
    pixels wide and high, not resized.
    """
    if crop is not None:
        checked = check_image(image, channels=model.channels)
        height, width = checked.shape[-2:]
        return crop_center(checked, min(crop, height), min(crop, width))
    if whole:
        return resize_short_side(image, size or model.size)
    return model.fit(image, size)


def keep_transparency(
    result: Result, model: Model, source: str, size: int | None, *, whole: bool
) -> Result:
    """The result of a repainting method, with the picture alone where its source is transparent.

    The panel `image` then has the opacity of the source file as a fourth channel; of several
    pictures, N×S×3×H×W, `values["alpha"]` has it, N×S×H×W, and they are saved with it. The other
    panels, and results of other methods and files, stay as they are.
    """
    image = result.values.get("image")
    if not isinstance(image, Tensor) or not is_repainted(result, image):
        return result
    alpha = read_alpha(source)
    if alpha is None:
        return result
    fitted = prepare_network_input(model, alpha.expand(-1, 3, -1, -1), size, whole=whole)
    opacity = fitted[:, :1].to(image)
    if image.ndim > 4:
        alphas = opacity.expand(*image.shape[:2], *image.shape[-2:])
        return replace(result, values={**result.values, "alpha": alphas})
    picture = torch.cat([image[:1], opacity], 1)
    caption = "The picture alone, as transparent as the given one."
    return replace(
        result,
        panels={**result.panels, "image": picture},
        captions={**result.captions, "image": caption},
    )


def is_repainted(result: Result, image: Tensor) -> bool:
    """Whether `values["image"]` shows the given picture in color, repainted once or in styles."""
    method = METHODS.get(str(result.recipe.get("method")))
    if method is None or not (method.repaints or method.name == "stylize"):
        return False
    return image.ndim >= 4 and image.shape[-3] == 3


def record_image_source(
    result: Result,
    source: str,
    size: int | None,
    *,
    whole: bool = False,
    crop: int | None = None,
) -> Result:
    """The result with the source of its image in the recipe, so that it can be made again."""
    image_recipe = {
        **result.recipe["image"],
        "path": resolve_source(source),
        "size": size,
        "whole": whole,
        **({} if crop is None else {"crop": crop}),
        "file_sha256": hash_source_file(source),
    }
    return replace(result, recipe={**result.recipe, "image": image_recipe})


def note_crop(result: Result, picture_size: Sequence[int], *, crop: int | None = None) -> Result:
    """The result, whose first caption says how much of the picture was used if not all of it.

    `picture_size` is the height and width of the whole picture.
    """
    if not result.captions:
        return result
    height, width = picture_size
    shape = result.recipe["image"]["shape"]
    used_height, used_width = shape[-2:]
    if crop is not None:
        if (height, width) == (used_height, used_width):
            return result
        note = f"Of the exemplar's {height}×{width} pixels its middle is used, at its own scale."
    else:
        scale = min(height / used_height, width / used_width)
        area = round(used_height * scale) * round(used_width * scale)
        if area >= MIN_WHOLE_SHARE * height * width:
            return result
        note = (
            f"Of the picture's {height}×{width} pixels its middle is used, cropped to the shape "
            "that the network was made for; --uncropped keeps all of it."
        )
    first, caption = next(iter(result.captions.items()))
    return replace(result, captions={**result.captions, first: f"{caption} {note}"})


def resolve_source(source: str) -> str:
    """The absolute path of a file, or the name of a sample."""
    path = Path(source)
    return str(path.resolve()) if path.exists() else source


def hash_source_file(source: str) -> str | None:
    """SHA-256 of a file; None for a sample, which comes with its library."""
    path = Path(source)
    return hash_file(path) if path.is_file() else None
