"""What the layers of a network keep of an image: other images that look the same to them."""

from typing import Any

import torch
from torch import Tensor

from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.pages.content.facts import name_image
from sightline.data.search.nearest import pick_evenly_spaced
from sightline.errors import SightlineError, escape_for_display
from sightline.images.transforms import resize_image
from sightline.methods.synthesis.inversion import inversion
from sightline.models.model import Model

INVERTED_LAYERS = 7  # evenly spread from first to last
INVERSION_STEPS = 60
INVERSION_SIDE = 128  # pixels of the shown picture's longer side

QUALITY = 75


def describe_inversions(explorer: Explorer, id: int) -> dict[str, Any] | None:
    """An image, and what some layers keep of it; None where no syntheses are made.

    Each takes seconds, when it is asked for.
    """
    model = explorer.model
    if model is None or not explorer.has_synthesis:
        return None
    layers = explorer.scan.layers
    positions = pick_evenly_spaced(len(layers), INVERTED_LAYERS).tolist()
    height, width = shrink_size(explorer.scan.size)
    return {
        "name": name_image(explorer.scan, id),
        "picture": explorer.thumbnail(id),
        "width": width,
        "height": height,
        "layers": [
            {
                "name": escape_for_display(layers[position]),
                "address": explorer.link("layer", layer=layers[position]),
                "picture": add_inversion(explorer, model, layers[position], id),
            }
            for position in positions
        ],
    }


def shrink_size(size: tuple[int, int]) -> tuple[int, int]:
    """The height and width of the shown pictures for images of this height and width."""
    scale = min(1.0, INVERSION_SIDE / max(size))
    return round(size[0] * scale), round(size[1] * scale)


def add_inversion(explorer: Explorer, model: Model, layer: str, id: int) -> str:
    """The address of an image that looks to a layer as an image of the scan does.

    Gray where the original is gone, and for a layer that can't be inverted.
    """

    def make_picture() -> Tensor:
        height, width = shrink_size(explorer.scan.size)
        try:
            image = explorer.read_input(id)
            result = inversion(model, image, layer=layer, steps=INVERSION_STEPS, seed=0)
        except SightlineError:
            return torch.full((1, 3, height, width), 0.5)
        inverted = torch.as_tensor(result.values["image"])
        return resize_image(model.to_picture(inverted), height, width)

    key = {"picture": "inversion", "layer": layer, "steps": INVERSION_STEPS, "side": INVERSION_SIDE}
    origin = {
        "network": explorer.scan.description.network.weights,
        "image": explorer.digest_image(id),
    }
    return explorer.add_picture(key, make_picture, depends_on=origin, quality=QUALITY)
