"""State dicts from files, read without running code in them, and filled into networks."""

import hashlib
import pickle
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sightline.errors import SightlineError, get_first_error_line, suggest_closest_name

# Other buffers may hold infinity on purpose, such as attention masks.
RUNNING_STATISTICS = ("running_mean", "running_var")

STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "net", "ema")

STATE_DICT_PREFIXES = ("module.", "_orig_mod.", "model.")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a safetensors file or a torch file.

    No code in the file is run (`weights_only=True`). The state dict may be nested under a usual key
    (`state_dict`) and its names may have a usual prefix (`module.`).

    Raises SightlineError for a missing file and for anything else.
    """
    if not path.is_file():
        raise SightlineError(f"no weights file {path}{_suggest_sibling(path)}")
    is_safetensors = path.suffix == ".safetensors"
    content = read_safetensors_file(path) if is_safetensors else read_torch_file(path)
    tensors = _find_state_dict(content)
    if not tensors:
        raise SightlineError(f"{path.name} holds no weights by name; a state dict is expected")
    return strip_wrapper_prefixes(tensors)


def strip_wrapper_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without the prefixes of wrappers, in whatever order these were put on."""
    stripped = dict(tensors)
    while True:
        prefix = find_shared_prefix(stripped)
        if not prefix:
            return stripped
        stripped = {name.removeprefix(prefix): tensor for name, tensor in stripped.items()}


def find_shared_prefix(names: Collection[str]) -> str:
    """The wrapper's prefix that all names have; empty if there is none."""
    for prefix in STATE_DICT_PREFIXES:
        if names and all(name.startswith(prefix) for name in names):
            return prefix
    return ""


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _suggest_sibling(path: Path) -> str:
    """A clause with the closest file name of the same folder, or nothing."""
    if not path.parent.is_dir():
        return ""
    siblings = [entry.name for entry in path.parent.iterdir() if entry.is_file()]
    return suggest_closest_name(path.name, siblings)


def _find_state_dict(content: Any) -> dict[str, Tensor]:
    """The innermost state dict of a file's content, empty if there is none."""
    while isinstance(content, Mapping):
        candidates = [content.get(key) for key in STATE_DICT_KEYS]
        nested = [value for value in candidates if isinstance(value, Mapping)]
        if not nested or not nested[0]:
            return {str(k): value for k, value in content.items() if isinstance(value, Tensor)}
        content = nested[0]
    return {}


def read_safetensors_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; raises SightlineError for a broken one."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise SightlineError(
            f"{path.name} is not a whole safetensors file ({get_first_error_line(error)})"
        ) from error


def read_torch_file(path: Path) -> Any:
    """What `torch.save` wrote, tensors in plain containers only.

    Raises SightlineError for a broken file, one that holds other objects, and other formats.
    """
    try:
        with path.open("rb") as file:
            signature = file.read(4)
        is_zip = signature == b"PK\x03\x04"
        is_pickle = signature[:1] == b"\x80"
        if is_zip or is_pickle:
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SightlineError(
            f"{path.name} is refused: it holds more than tensors, "
            "and no code from a weights file is run"
        ) from error
    except Exception as error:  # the unpickler raises any kind of error on broken bytes
        raise SightlineError(
            f"{path.name} is not a whole torch file ({get_first_error_line(error)})"
        ) from error
    raise SightlineError(f"{path.name} is neither a torch nor a safetensors file")


def fill_network_weights(
    network: nn.Module, state_dict: Mapping[str, Tensor], path: Path, name: str
) -> None:
    """Copies a state dict into a network, cast to the network's types.

    Raises SightlineError, with the first key that is wrong, where not every key fits and for NaN or
    infinite weights. `path` and `name` are the file and the network that the message names.
    """
    # A network whose own names all begin as a wrapper's do: reading has stripped that too.
    own_prefix = ""
    own_names = list(network.state_dict())
    while prefix := find_shared_prefix(own_names):
        own_prefix += prefix
        own_names = [own_name.removeprefix(prefix) for own_name in own_names]
    if own_prefix and not any(key.startswith(own_prefix) for key in state_dict):
        state_dict = {own_prefix + key: value for key, value in state_dict.items()}
    _check_state_dict_fits(network.state_dict(), state_dict, f"{path.name} doesn't fit {name}")
    broken = [
        key
        for key, value in state_dict.items()
        if value.is_floating_point() and not value.isfinite().all()
    ]
    if broken:
        raise SightlineError(
            f"{path.name} is refused: {broken[0]} holds NaN or infinite weights"
            f"{describe_remaining_keys(broken)}"
        )
    network.load_state_dict(state_dict, strict=False)


def _check_state_dict_fits(
    expected: Mapping[str, Tensor], state_dict: Mapping[str, Tensor], message: str
) -> None:
    """Raises SightlineError with `message` unless the keys and shapes are those expected."""
    misshapen: list[str] = []
    missing: list[str] = []
    for key, value in expected.items():
        # Older files don't count the batches that a batch norm saw.
        if key not in state_dict:
            if not key.endswith("num_batches_tracked"):
                missing.append(key)
        elif state_dict[key].shape != value.shape:
            misshapen.append(key)
    unexpected = [key for key in state_dict if key not in expected]

    if misshapen:
        key = misshapen[0]
        remaining = describe_remaining_keys([*misshapen, *missing, *unexpected])
        raise SightlineError(
            f"{message}: {key} is {tuple(state_dict[key].shape)} in the file, "
            f"{tuple(expected[key].shape)} in the network{remaining}"
        )
    if missing:
        remaining = describe_remaining_keys(missing)
        raise SightlineError(f"{message}: {missing[0]} is missing{remaining}")
    if unexpected:
        remaining = describe_remaining_keys(unexpected)
        raise SightlineError(f"{message}: the network has no {unexpected[0]}{remaining}")


def describe_remaining_keys(keys: list[str]) -> str:
    """«, and 3 more» after the first of the keys, or nothing."""
    return f", and {len(keys) - 1} more" if len(keys) > 1 else ""
