"""The network that a recipe names, loaded again with the very weights."""

from collections.abc import Mapping
from typing import Any

import torch

from .errors import SightlineError
from .model import Model
from .zoo import load


def model_of(told: Mapping[str, Any], device: str | torch.device | None = None) -> Model:
    """The recipe's network, with the very weights. Raises SightlineError where it can't be had by name, or the weights changed."""
    if told.get("built_in_code"):
        raise SightlineError(f"the recipe's network is a {told['model']} that was built in code; give it with model=")
    name = told.get("model")
    if not isinstance(name, str) or not isinstance(told.get("options", {}), dict):
        raise SightlineError("this recipe does not name its network; give it with model=")
    if ":" in name:
        # A recipe is data that people pass on: it must not be able to run code.
        raise SightlineError(f"the recipe's network is made by code ({name}), which a recipe may not run; give it with model=")
    model = load(told["model"], weights=told.get("weights"), device=device, **told.get("options", {}))
    if "sha256" in told and model.recipe.get("sha256") != told["sha256"]:
        raise SightlineError(
            f"the weights of {told.get('weights', told['model'])} are no longer those that the recipe was made with (its SHA-256 differs)"
        )
    return model
