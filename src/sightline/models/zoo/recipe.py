"""How to load the same network again: its name, options and weights, with a file's SHA-256."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sightline.models.weights.checkpoint import hash_file
from sightline.models.zoo.builders import find_embedded_weights
from sightline.models.zoo.names import EMBEDDED_NETWORKS


def make_model_recipe(name: str, weights: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of a network that was loaded by name.

    Where JSON can't hold an option (a function, a class), the recipe says that the network was
    built in code.
    """
    recipe: dict[str, Any] = {"model": name}
    plain_options = {key: convert_statistics(key, value) for key, value in options.items()}
    if not is_json(plain_options):
        return {"model": name, "built_in_code": True}
    if plain_options:
        recipe["options"] = plain_options
    if weights == "random":
        recipe["weights"] = weights
    elif weights is not None:
        recipe["weights"] = str(Path(weights).resolve())
        recipe["sha256"] = hash_file(Path(weights))
    elif name in EMBEDDED_NETWORKS:
        recipe["sha256"] = hash_file(find_embedded_weights(name))
    return recipe


def convert_statistics(key: str, value: Any) -> Any:
    """Mean and std as a plain list where they are an array; other values as they are."""
    if key in ("mean", "std") and isinstance(value, (Tensor, np.ndarray)):
        return value.flatten().tolist()
    return value


def is_json(value: Any) -> bool:
    """Whether JSON can hold a value; lists may be tuples."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True
