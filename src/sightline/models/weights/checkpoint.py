"""State dicts from files, read without running any code, and fitted to a network or refused with the reason."""

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sightline.errors import SightlineError, get_first_error_line, suggest_closest_name

# Other buffers may hold infinity on purpose, as the masks of attention do.
RUNNING_STATISTICS = ("running_mean", "running_var")

STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "net", "ema")

STATE_DICT_PREFIXES = ("module.", "_orig_mod.", "model.")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a safetensors file or a torch file (`weights_only=True`: no code in it is run).

    Looks through the usual wrappings (`state_dict`, `module.`). Raises SightlineError for anything else.
    """
    if not path.is_file():
        siblings = (
            [entry.name for entry in path.parent.iterdir() if entry.is_file()]
            if path.parent.is_dir()
            else []
        )
        raise SightlineError(
            f"no weights file {path}{suggest_closest_name(path.name, siblings) if siblings else ''}"
        )
    state: Any = (
        read_safetensors_file(path) if path.suffix == ".safetensors" else read_torch_file(path)
    )
    while isinstance(state, Mapping) and (
        inner := next(
            (state[key] for key in STATE_DICT_KEYS if isinstance(state.get(key), Mapping)), None
        )
    ):
        state = inner
    tensors = (
        {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
        if isinstance(state, Mapping)
        else {}
    )
    if not tensors:
        raise SightlineError(f"{path.name} holds no weights by name; a state dict is expected")
    for prefix in STATE_DICT_PREFIXES:
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_safetensors_file(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise SightlineError(
            f"{path.name} is not a whole safetensors file ({get_first_error_line(error)})"
        ) from error


def read_torch_file(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            start = file.read(4)
        if start == b"PK\x03\x04" or start[:1] == b"\x80":  # a zip archive, a pickle
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SightlineError(
            f"{path.name} is refused: it holds more than tensors, and no code from a weights file is run"
        ) from error
    except (
        Exception
    ) as error:  # on bytes it doesn't like, the unpickler raises whatever comes to hand
        raise SightlineError(
            f"{path.name} is not a whole torch file ({get_first_error_line(error)})"
        ) from error
    raise SightlineError(f"{path.name} is neither a torch nor a safetensors file")


def fill_network_weights(
    network: nn.Module, state_dict: Mapping[str, Tensor], path: Path, name: str
) -> None:
    """Copies `state` into `network` (cast to its types). Every name must fit; raises SightlineError with the first that doesn't."""
    own = network.state_dict()
    wrong = [
        key
        for key, value in own.items()
        if key in state_dict and state_dict[key].shape != value.shape
    ]
    missing = [
        key for key in own if key not in state_dict and not key.endswith("num_batches_tracked")
    ]
    extra = [key for key in state_dict if key not in own]
    if wrong:
        key = wrong[0]
        given, needed = tuple(state_dict[key].shape), tuple(own[key].shape)
        others = describe_remaining_keys([*wrong, *missing, *extra])
        raise SightlineError(
            f"{path.name} doesn't fit {name}: {key} is {given} in the file, {needed} in the network{others}"
        )
    if missing:
        raise SightlineError(
            f"{path.name} doesn't fit {name}: {missing[0]} is missing{describe_remaining_keys(missing)}"
        )
    if extra:
        raise SightlineError(
            f"{path.name} doesn't fit {name}: the network has no {extra[0]}{describe_remaining_keys(extra)}"
        )
    broken = [
        key
        for key, value in state_dict.items()
        if value.is_floating_point() and not value.isfinite().all()
    ]
    if broken:
        raise SightlineError(
            f"{path.name} is refused: {broken[0]} holds NaN or infinite weights{describe_remaining_keys(broken)}"
        )
    network.load_state_dict(state_dict, strict=False)


def describe_remaining_keys(keys: list[str]) -> str:
    """« and 3 more », or nothing."""
    return f", and {len(keys) - 1} more" if len(keys) > 1 else ""
