"""What `load` is given: one line for everything that is no network, no labels or no file."""

import inspect
import mimetypes
import os
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from sightline.errors import SightlineError
from sightline.models.model import Model

WEIGHTS_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors", ".bin")

NETWORK_CHOICES = 'a name such as "resnet50", or a module'


def check_network(network: object) -> None:
    """Raises SightlineError for anything but a name or a module, with what to give instead."""
    if isinstance(network, (str, nn.Module)):
        return
    reason = _describe_lookalike(network)
    if not reason:
        reason = f"is {network!r:.60} ({type(network).__name__}); give {NETWORK_CHOICES}"
    raise SightlineError(f"the network {reason}")


def _describe_lookalike(network: object) -> str:
    """What was probably meant by something that is not a network; empty if nothing is likely."""
    name = getattr(network, "__name__", "")
    library = type(network).__module__.partition(".")[0]
    if isinstance(network, Model):
        return "is a model that sl.load returned, which can be used as it is"
    if isinstance(network, type):
        return f"is the class {name}: call it, {name}(...), to make a module"
    if isinstance(network, torch.export.ExportedProgram):
        return "is an exported program, whose layers are gone: give the module it was made from"
    if inspect.isroutine(network):
        return f"is the function {name}: call it, {name}(...), to make a module"
    if isinstance(network, Mapping) and any(isinstance(item, Tensor) for item in network.values()):
        return "is a state dict, weights without an architecture: load it into a module first"
    if isinstance(network, os.PathLike):
        check_not_a_file(os.fspath(network))
        return f"is the path {os.fspath(network)!r:.60}; give {NETWORK_CHOICES}"
    if library in ("onnx", "onnxruntime"):
        return "is an ONNX graph, which torch can't look into: give the module it was made from"
    return ""


def check_not_a_file(name: str | bytes) -> None:
    """Raises SightlineError where what should be a network's name is that of a file or folder."""
    text = os.fsdecode(name)
    path = Path(text)
    suffix = path.suffix.lower()
    file_type, _ = mimetypes.guess_type(text)
    if suffix in WEIGHTS_SUFFIXES:
        raise SightlineError(
            f"{text} is a file of weights, without an architecture; "
            f"name that too: sl.load(NAME, weights={text!r})"
        )
    if suffix in (".onnx", ".pt2", ".tflite", ".h5", ".keras", ".engine"):
        raise SightlineError(
            f"{text} is an exported network, which torch can't look into; "
            "give the module it was made from"
        )
    if file_type is not None and file_type.startswith(("image/", "video/")):
        raise SightlineError(
            f"{text} is a picture or film, and no network; sl.read reads it, and "
            f"sl.load takes {NETWORK_CHOICES}"
        )
    if _has_network_config(path):
        raise SightlineError(f"{text} is a folder; write hf:{text}")


def _has_network_config(path: Path) -> bool:
    """Whether a folder is one that `save_pretrained` wrote."""
    try:
        return (path / "config.json").is_file()
    except (OSError, ValueError):  # no path at all: too long, or with a null character
        return False


def check_labels(labels: object) -> tuple[str, ...]:
    """The labels; raises SightlineError for anything but a list of texts."""
    advice = "give a list with one name for each class"
    if isinstance(labels, Mapping):
        raise SightlineError(f"labels is a dict; {advice}: list(labels.values())")
    if isinstance(labels, (str, bytes, Set, Tensor)) or not isinstance(labels, Iterable):
        raise SightlineError(f"labels is {labels!r:.60}; {advice}")
    names: list[str] = []
    for label in cast(Iterable[object], labels):
        if not isinstance(label, str):
            raise SightlineError(
                f"one of the labels is {label!r:.60}; give them as text: "
                "[str(label) for label in ...]"
            )
        names.append(label)
    return tuple(names)


def check_weights(weights: object) -> str | None:
    """The path or "random" as text; raises SightlineError for anything else."""
    if weights is None or isinstance(weights, str):
        return weights or None
    if isinstance(weights, os.PathLike):
        return os.fsdecode(weights)
    if isinstance(weights, Mapping):
        raise SightlineError(
            "weights is a state dict; load it into a module and give that, or write it to a file "
            "with torch.save"
        )
    raise SightlineError(f"weights is {weights!r:.60}; give a file, or 'random'")


def check_output(output: object) -> None:
    """Raises SightlineError for anything but an index, a key or a path of keys."""
    is_index = isinstance(output, int) and not isinstance(output, bool)
    if not is_index and not isinstance(output, str):
        raise SightlineError(
            f"output is {output!r:.60}; give an index, a key, or a path such as 'heads.sex'"
        )


def check_unit(unit: object) -> None:
    """Raises SightlineError for anything but a short text."""
    if not isinstance(unit, str) or len(unit) > 40:
        raise SightlineError(f"unit is {unit!r:.60}; give a short text such as 'years'")


def check_settings(settings: dict[str, Any]) -> None:
    """Makes labels a tuple; raises SightlineError for settings that `Model` does not check."""
    if "labels" in settings:
        settings["labels"] = check_labels(settings["labels"])
    if "output" in settings:
        check_output(settings["output"])
    if "unit" in settings:
        check_unit(settings["unit"])


def resolve_output_kind(output_kind: Any, multilabel: object) -> Any:
    """The kind of output; raises SightlineError where `multilabel` contradicts it."""
    if not isinstance(multilabel, bool):
        raise SightlineError(f"multilabel is {multilabel!r:.60}; give True or False")
    if not multilabel:
        return output_kind
    if output_kind not in (None, "multilabel"):
        raise SightlineError(
            f"multilabel=True says that labels don't exclude each other, and output_kind is "
            f"{output_kind!r:.60}; give one of them"
        )
    return "multilabel"


def scale_resize(resize: int, old_size: Sequence[int], new_size: Sequence[int]) -> int:
    """A known short side before the crop, for another size with the same share cropped."""
    return max(min(new_size), round(resize * min(new_size) / min(old_size)))
