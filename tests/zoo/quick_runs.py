"""The parameters with which the matrix runs each method: as little work as shows that it works."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from helpers import folder_of

import sightline as sl
from sightline.registry.method import Method

SMALL_FOLDER = 6  # images, one of them broken
BOXED = "odd"  # the folder in it whose images have boxes

# Short, and by way of the network where the defaults don't need it.
QUICK: Mapping[str, Mapping[str, Any]] = {
    "filters": {"k": 4},
    "neighbors": {"k": 2},
    "embedding": {"method": "pca"},
    "activations": {"k": 4},
    "patches": {"k": 2, "max_units": 2},
    "labels": {"k": 2, "max_units": 2},
    "saliency": {"kind": "integrated", "samples": 2},
    "occlusion": {"window": 16, "stride": 16},
    "rise": {"samples": 4, "cells": 3, "batch": 2},
    "cam": {"kind": "scorecam", "channels": 3},
    "trust": {"steps": 2, "samples": 4, "stages": 2},
    "pointing": {"methods": ("saliency", "gradcam")},
    "synthesis": {"steps": 2},
    "adversarial": {"steps": 2},
    "boundary": {"cells": 3, "steps": 2},
    "contrast": {"steps": 2},
    "transfer": {"steps": 2},
    "universal": {"steps": 2, "k": 2},
    "adversarial_patch": {"steps": 2, "k": 2},
    "inversion": {"k": 2, "steps": 2, "kind": "fourier"},
    "deepdream": {"octaves": 1, "steps": 2},
    "stylize": {"styles": ("scream",)},
    "norms": {"size": 32},
    "texture": {"method": "gatys", "steps": 2},
    "style": {"steps": 2},
}

# Further runs of a method whose kinds go other ways through the network.
FURTHER: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "cam": ({"kind": "guided_gradcam"}, {"kind": "layercam", "layers": ("middle", "last_conv")}),
}


def make_folder(root: Path) -> Path:
    """A folder of two folders of small pictures; those of the second have a box each."""
    folder_of(root, SMALL_FOLDER)
    lines = ["file,label,x0,y0,x1,y1"]
    for picture in sorted((root / BOXED).iterdir()):
        lines.append(f"{picture.name},,8,6,30,24")
    (root / BOXED / "boxes.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def list_quick_runs(method: Method, model: sl.Model, folder: Path) -> list[dict[str, Any]]:
    """The parameters of each quick run of a method; one that reads a folder reads this one."""
    runs = (QUICK.get(method.name, {}), *FURTHER.get(method.name, ()))
    return [{**parameters, **find_surroundings(method, model, folder)} for parameters in runs]


def find_surroundings(method: Method, model: sl.Model, folder: Path) -> dict[str, Any]:
    """The parameters of a method that depend on the model and on the folder."""
    parameters: dict[str, Any] = {}
    if "side" in method.parameters:
        parameters["side"] = model.size  # many transformers take no other
    if {"folder", "store"} <= method.parameters.keys():
        parameters["folder"] = str(folder)
    elif "folder" in method.parameters and method.name != "saliency":
        parameters["folder"] = str(folder / BOXED)
    return parameters
