"""What a weights file holds: by its first bytes, within bounds, and without running code in it."""

import os
import pickle
import re
import stat
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sightline.errors import (
    SightlineError,
    escape_for_display,
    get_first_error_line,
    is_out_of_memory,
    make_memory_error,
    suggest_closest_name,
)

# How much more than the file's own bytes an archive may unpack to. `torch.save` compresses nothing,
# and weights that somebody packed again hardly become smaller.
MAX_UNPACKED_SHARE = 4

SIGNATURE_LENGTH = 64

ZIP_SIGNATURE = b"PK\x03\x04"
PICKLE_SIGNATURE = b"\x80"

# Members of archives that hold a program beside the weights.
PROGRAM_MEMBERS = ("constants.pkl", "archive_format", "serialized_exported_program.json")

# How the unpickler names what it refuses.
REFUSED_NAME = re.compile(r"(?:GLOBAL|global|class|function) ['`]?((?:\w+\.)+\w+)")

# How a pickle names the function that makes an array of any number of bytes.
MEMORY_REQUEST = re.compile(rb"(?:builtins|__builtin__)\n\s*bytearray\s*\n")

STATE_DICT_ADVICE = "write the weights alone: torch.save(model.state_dict(), FILE)"


def read_file_content(path: Path) -> Any:
    """What a safetensors file or a torch file holds.

    Raises SightlineError for a missing or unreadable file, and for anything else.
    """
    signature = read_signature(path)
    if signature.startswith(ZIP_SIGNATURE):
        check_archive(path)
        return read_torch_file(path)
    # The length of a JSON header comes first in a safetensors file. For one header of 32 it begins
    # as a pickle does.
    if signature[8:9] == b"{":
        return read_safetensors_file(path)
    if signature.startswith(PICKLE_SIGNATURE):
        check_old_file(path)
        return read_torch_file(path)
    if path.suffix == ".safetensors":
        return read_safetensors_file(path)
    raise SightlineError(
        f"{path.name} is neither a torch nor a safetensors file{_describe_other_content(signature)}"
    )


def read_signature(path: Path) -> bytes:
    """The first bytes of a regular file; raises SightlineError where there is none to read."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            with path.open("rb") as file:
                return file.read(SIGNATURE_LENGTH)
    except PermissionError as error:
        raise SightlineError(f"the weights file {path} may not be read by this user") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        name = escape_for_display(str(path))
        raise SightlineError(f"no weights file {name}{_suggest_sibling(path)}") from error
    if stat.S_ISDIR(mode):
        raise SightlineError(f"no weights file {path}: it is a folder{_list_weights(path)}")
    raise SightlineError(f"no weights file {path}: it is a pipe, a socket or a device")


def _list_weights(folder: Path) -> str:
    """A clause with the first weights file of a folder, or nothing."""
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return ""
    weights = [name for name in names if name.endswith((".safetensors", ".pt", ".pth", ".ckpt"))]
    return f"; did you mean {folder / weights[0]}?" if weights else ""


def _suggest_sibling(path: Path) -> str:
    """A clause with the closest file name of the same folder, or nothing."""
    try:
        siblings = [entry.name for entry in path.parent.iterdir() if entry.is_file()]
    except (OSError, ValueError):
        return ""
    return suggest_closest_name(path.name, siblings)


def _describe_other_content(signature: bytes) -> str:
    """«: it is empty», for what is often found in place of weights; empty for anything else."""
    text = signature.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not signature:
        return ": it is empty"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return ": it is a web page, which came in place of the download"
    if text.startswith(b"version https://git-lfs"):
        return ": it is a pointer of Git LFS; `git lfs pull` fetches the file"
    if signature.startswith(b"\x89HDF"):
        return ": it is an HDF5 file, as Keras writes them"
    return ""


def _refuse_without_memory(path: Path, error: Exception) -> None:
    """Raises SightlineError where there is no memory left: then nothing is wrong with the file."""
    if is_out_of_memory(error):
        raise make_memory_error(f"to read {path.name}", "the size of the network") from error


# ── safetensors ──


def read_safetensors_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; raises SightlineError for a broken one."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        _refuse_without_memory(path, error)
        raise SightlineError(
            f"{path.name} is not a whole safetensors file ({get_first_error_line(error):.200})"
        ) from error


# ── torch ──


def check_archive(path: Path) -> None:
    """Raises SightlineError for an archive that unpacks to much more, or that holds a program."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_members(path, members)
            for member in members:
                if member.filename.endswith(".pkl"):
                    _check_memory_requests(path, archive.read(member))
    except SightlineError:
        raise
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError) as error:
        _refuse_without_memory(path, error)
        raise SightlineError(
            f"{path.name} is not a whole torch file ({get_first_error_line(error):.200})"
        ) from error


def _check_members(path: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    """Raises SightlineError where an archive's list of members rules it out."""
    unpacked = sum(member.file_size for member in members)
    packed = path.stat().st_size
    if unpacked > MAX_UNPACKED_SHARE * packed:
        raise SightlineError(
            f"{path.name} is refused: it would unpack to {unpacked / 1e6:,.0f} MB from "
            f"{packed / 1e6:,.1f} MB; torch.save compresses nothing"
        )
    names = {member.filename.rpartition("/")[2] for member in members}
    if names.intersection(PROGRAM_MEMBERS):
        raise SightlineError(
            f"{path.name} is refused: it holds a scripted or exported program; {STATE_DICT_ADVICE}"
        )


def check_old_file(path: Path) -> None:
    """Raises SightlineError for a file without an archive that asks for memory of any size."""
    try:
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
            _check_memory_requests(path, content)
    except OSError as error:
        raise SightlineError(f"the weights file {path} can't be read ({error})") from error


def _check_memory_requests(path: Path, content: bytes | mmap) -> None:
    """Raises SightlineError where a pickle calls a function that fills memory of any size.

    It is the only one of those that `weights_only` lets pass.
    """
    if MEMORY_REQUEST.search(content):
        raise SightlineError(
            f"{path.name} is refused: it holds more than tensors (builtins.bytearray); "
            f"{STATE_DICT_ADVICE}"
        )


def read_torch_file(path: Path) -> Any:
    """What `torch.save` wrote, tensors in plain containers only.

    Raises SightlineError for a broken file, and one that holds other objects.
    """
    try:
        # Of a file by its name torch would look at the suffix.
        with path.open("rb") as file, warnings.catch_warnings():
            # Torch warns of kinds of tensors that are refused below in one line.
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = REFUSED_NAME.search(str(error))
        example = f" ({refused[1]:.80})" if refused else ""
        raise SightlineError(
            f"{path.name} is refused: it holds more than tensors, "
            f"and no code from a weights file is run{example}; {STATE_DICT_ADVICE}"
        ) from error
    except Exception as error:  # the unpickler raises any kind of error on broken bytes
        _refuse_without_memory(path, error)
        raise SightlineError(
            f"{path.name} is not a whole torch file ({get_first_error_line(error):.200})"
        ) from error
