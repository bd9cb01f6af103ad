"""State dicts from files, read without running code in them, and filled into networks."""

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sightline.errors import SightlineError, escape_for_display
from sightline.models.weights.file_content import read_file_content

# Other buffers may hold infinity on purpose, such as attention masks.
RUNNING_STATISTICS = ("running_mean", "running_var")

FLOAT_TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "net", "ema")

STATE_DICT_PREFIXES = ("module.", "_orig_mod.", "model.")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a safetensors file or a torch file.

    No code in the file is run (`weights_only=True`). The state dict may be nested under a usual key
    (`state_dict`) and its names may have a usual prefix (`module.`).

    Raises SightlineError for a missing file, for anything else, and for tensors that are no plain
    arrays of numbers.
    """
    tensors = _find_state_dict(read_file_content(path))
    if not tensors:
        raise SightlineError(f"{path.name} holds no weights by name; a state dict is expected")
    for name, tensor in tensors.items():
        _check_plain_tensor(name, tensor, path.name)
    return strip_wrapper_prefixes(tensors)


def _check_plain_tensor(name: str, tensor: Tensor, file_name: str) -> None:
    """Raises SightlineError for a tensor that is not simply as many numbers as its shape says."""
    reason = ""
    if tensor.is_meta:
        reason = "has no values (its device is meta)"
    elif tensor.is_quantized:
        reason = f"is quantized ({tensor.dtype})"
    elif tensor.layout != torch.strided or tensor.is_nested:
        reason = "is sparse or nested"
    elif tensor.is_complex():
        reason = f"is complex ({tensor.dtype})"
    elif tensor.is_floating_point() and tensor.dtype not in FLOAT_TYPES:
        reason = f"has the type {tensor.dtype}"
    elif tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        reason = "has fewer numbers than its shape says (it was expanded); write tensor.clone()"
    if reason:
        raise SightlineError(f"{file_name} is refused: {escape_for_display(name)} {reason}")


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


def _find_state_dict(content: Any) -> dict[str, Tensor]:
    """The innermost state dict of a file's content, empty if there is none."""
    visited: set[int] = set()
    # A container may hold itself.
    while isinstance(content, Mapping) and id(content) not in visited:
        visited.add(id(content))
        candidates = [content.get(key) for key in STATE_DICT_KEYS]
        nested = [value for value in candidates if isinstance(value, Mapping)]
        if not nested or not nested[0]:
            return {
                key: value
                for key, value in content.items()
                if isinstance(key, str) and isinstance(value, Tensor)
            }
        content = nested[0]
    return {}


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
    _check_number_types(network.state_dict(), state_dict, path.name)
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
            f"{message}: {escape_for_display(key)} is {tuple(state_dict[key].shape)} in the file, "
            f"{tuple(expected[key].shape)} in the network{remaining}"
        )
    if missing:
        remaining = describe_remaining_keys(missing)
        raise SightlineError(f"{message}: {escape_for_display(missing[0])} is missing{remaining}")
    if unexpected:
        remaining = describe_remaining_keys(unexpected)
        name = escape_for_display(unexpected[0])
        raise SightlineError(f"{message}: the network has no {name}{remaining}")


def _check_number_types(
    expected: Mapping[str, Tensor], state_dict: Mapping[str, Tensor], file_name: str
) -> None:
    """Raises SightlineError for integers in place of weights, as quantization leaves them."""
    for key, value in state_dict.items():
        if expected[key].is_floating_point() and not value.is_floating_point():
            raise SightlineError(
                f"{file_name} is refused: {key} holds numbers of the type {value.dtype}, "
                f"and the network's are {expected[key].dtype}"
            )


def describe_remaining_keys(keys: list[str]) -> str:
    """«, and 3 more» after the first of the keys, or nothing."""
    return f", and {len(keys) - 1} more" if len(keys) > 1 else ""
