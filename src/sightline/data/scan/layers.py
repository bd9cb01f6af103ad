"""Which layers a scan follows, by name, and how many units and positions they have."""

from collections.abc import Sequence

import torch
from torch import nn

from sightline.models.layers.attention_matrices import refuse_attention_matrix
from sightline.models.layers.feature_maps import find_view_layers, reshape_to_unit_grid
from sightline.models.model import Model


def resolve_scan_layers(model: Model, names: Sequence[str], penultimate: str) -> list[str]:
    """The layers' own names, each once; a pattern stands for all layers that it matches.

    `penultimate` is the layer of that name, which `resolve_scan_layer` finds.
    """
    layers = [
        penultimate if name == "penultimate" else model.layer(name)
        for name in model.match_layers(names)
    ]
    return list(dict.fromkeys(layers))


def resolve_scan_layer(model: Model, name: str) -> str:
    """A layer's own name, as `Model.layer`; "penultimate" is known for every network.

    Where the structure has no such layer, or one with several views of each image, the last feature
    map stands in, else the last hidden layer, else the logits.
    """
    if name != "penultimate":
        return model.layer(name)
    penultimate = model.landmarks.get(name)
    if penultimate is not None and penultimate.endswith(":in"):
        # A head that runs several times is followed at its first call.
        penultimate = penultimate.split(":", maxsplit=1)[0] + ":in"
        if not is_input_recorded(model, penultimate):
            penultimate = None
    candidates = [penultimate, model.landmarks.get("last_conv"), find_last_hidden_layer(model)]
    views = find_view_layers(model)
    for candidate in candidates:
        if candidate is not None and candidate.removesuffix(":in") not in views:
            return candidate
    return "logits"


def is_input_recorded(model: Model, layer: str) -> bool:
    """Whether a layer NAME:in can be read: not if its module is given its input by keyword."""
    with torch.no_grad():
        outputs = model.run(model.blank(), [layer])
    return layer in outputs


def find_last_hidden_layer(model: Model) -> str | None:
    """The last layer that is computed with parameters and is not shaped like the logits."""
    logits_shape = (len(model.labels),)
    is_learned = False
    last_hidden = None
    views = find_view_layers(model)
    for name, layer in model.layers.items():
        if layer.step or name in views:
            continue
        is_learned = is_learned or next(model.module(name).parameters(), None) is not None
        has_units = 1 <= len(layer.shape) <= 3
        if is_learned and has_units and layer.shape != logits_shape:
            last_hidden = name
    return last_hidden


def list_default_layers(model: Model) -> list[str]:
    """The layers whose units a scan follows by default.

    All convolutions; without any the last hidden layer, else the logits.
    """
    return list_convolutions(model) or [find_last_hidden_layer(model) or "logits"]


def list_convolutions(model: Model) -> list[str]:
    """The two-dimensional convolutions of a network that give one map for each image."""
    return [
        name
        for name, layer in model.layers.items()
        if not layer.step
        and isinstance(model.module(name), nn.Conv2d)
        and len(layer.shape) == 3
        and layer.batch == 1
    ]


def measure_unit_grids(
    model: Model, layers: Sequence[str], size: tuple[int, int]
) -> dict[str, tuple[int, int, int]]:
    """Units, rows and columns of layers for images of a height and width.

    Raises SightlineError for a layer that has no positions in the image.
    """
    blank = torch.full((1, model.channels, *size), 0.5, device=model.device)
    with torch.no_grad():
        outputs = model.run(blank, layers)
    grids: dict[str, tuple[int, int, int]] = {}
    for name in layers:
        refuse_attention_matrix(outputs[name], name)
        _, units, rows, columns = reshape_to_unit_grid(outputs[name], blank, model, name).shape
        grids[name] = (units, rows, columns)
    return grids
