"""`sightline.toml`: the network of a folder's commands, so that it need not be named each time.

    network = "squeezenet1_0"
    weights = "mine.safetensors"
    labels = "labels.txt"       # or ["cat", "dog"]
    mean = [0.48, 0.46, 0.41]
    std = [0.23, 0.22, 0.22]

The file is data: it runs no code and names only files of this machine. Nothing here imports torch.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sightline.errors import SightlineError, escape_for_display, suggest_closest_name

SETTINGS_FILE = "sightline.toml"

MAX_SETTINGS_BYTES = 100_000
MAX_LABELS_BYTES = 10_000_000

HUGGING_FACE_PREFIX = "hf:"

ChannelStatistics = Annotated[list[float], Field(min_length=1, max_length=1000)]


class ProjectSettings(BaseModel):
    """What a `sightline.toml` may hold.

    Attributes:
        network: A name of torchvision or timm, sightnet, or hf:FOLDER. Without it the rest is for
            the network of `--model`.
        weights: A file beside the settings, or "random".
        labels: A file with one name a line, or the names.
        mean, std: Channel means and standard deviations that normalize a [0, 1] image.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    network: Annotated[str, Field(min_length=1, max_length=300)] | None = None
    weights: Annotated[str, Field(min_length=1, max_length=4000)] | None = None
    labels: (
        Annotated[str, Field(min_length=1, max_length=4000)]
        | Annotated[list[str], Field(min_length=2)]
        | None
    ) = None
    mean: ChannelStatistics | None = None
    std: ChannelStatistics | None = None


def read_project_settings(folder: Path) -> dict[str, list[str]]:
    """The settings of a folder as values of options: model, weights, labels, mean and std.

    Empty where the folder has no `sightline.toml`. Paths are absolute.
    Raises SightlineError, in one line, for a file that can't be read, for other keys and values,
    for code, and for a file that is not on this machine.
    """
    path = folder / SETTINGS_FILE
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > MAX_SETTINGS_BYTES:
            raise SightlineError(f"{SETTINGS_FILE} has more than {MAX_SETTINGS_BYTES:,} bytes")
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        settings = ProjectSettings.model_validate(content)
    except ValidationError as error:
        raise SightlineError(f"{SETTINGS_FILE}: {_describe_problem(error)}") from error
    except SightlineError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise SightlineError(
            f"{SETTINGS_FILE} can't be read ({escape_for_display(reason)})"
        ) from error
    return _collect_option_values(settings, folder)


def read_labels(text: str) -> tuple[str, ...]:
    """The class names that `--labels` gives: those in a file, one a line, or «a,b,c».

    Raises SightlineError for a file without names, and for a single name that is no file.
    """
    path = Path(text)
    if not _is_file(path):
        if "," in text:
            return tuple(name.strip() for name in text.split(","))
        raise SightlineError(
            f"labels is {text!r:.80}; give a file with one name a line, or a list such as cat,dog"
        )
    name = escape_for_display(str(path))
    try:
        if path.stat().st_size > MAX_LABELS_BYTES:
            raise SightlineError(f"{name}: more than {MAX_LABELS_BYTES / 1e6:g} MB of labels")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except SightlineError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise SightlineError(f"{name} can't be read as labels ({reason})") from error
    labels = tuple(line.strip() for line in lines)
    while labels and not labels[-1]:
        labels = labels[:-1]
    if not labels:
        raise SightlineError(f"{name} holds no labels; write one name a line")
    return labels


def describe_settings(values: Mapping[str, list[str]]) -> str:
    """«sightline.toml: model vgg16, weights mine.pt, 3 labels»."""
    facts: list[str] = []
    for name, items in values.items():
        text = items[0] if len(items) == 1 else " ".join(items)
        facts.append(f"{name} {escape_for_display(text, 80)}")
    return f"{SETTINGS_FILE}: {', '.join(facts)}"


def _collect_option_values(settings: ProjectSettings, folder: Path) -> dict[str, list[str]]:
    values: dict[str, list[str]] = {}
    if settings.network is not None:
        values["model"] = [_check_network_name(settings.network, folder)]
    if settings.weights is not None:
        is_random = settings.weights == "random"
        values["weights"] = [
            "random" if is_random else _find_local_file("weights", settings.weights, folder)
        ]
    if isinstance(settings.labels, str):
        values["labels"] = [_find_local_file("labels", settings.labels, folder)]
    elif settings.labels is not None:
        if any("," in label for label in settings.labels):
            raise SightlineError(f"{SETTINGS_FILE}: a label has a comma; write labels into a file")
        values["labels"] = [",".join(settings.labels)]
    for name in ("mean", "std"):
        numbers = getattr(settings, name)
        if numbers is not None:
            values[name] = [repr(number) for number in numbers]
    return values


def _check_network_name(name: str, folder: Path) -> str:
    """The network; raises SightlineError for code and for what would be downloaded by its place."""
    if name.startswith(HUGGING_FACE_PREFIX):
        source = folder / name.removeprefix(HUGGING_FACE_PREFIX)
        if not source.is_dir():
            raise SightlineError(
                f"{SETTINGS_FILE}: network is {name!r:.80}; it may name only a folder of this "
                "machine; give others as --model"
            )
        return f"{HUGGING_FACE_PREFIX}{source.absolute()}"
    if ":" in name:
        raise SightlineError(
            f"{SETTINGS_FILE}: network is {name!r:.80}, code, which a settings file may not run; "
            f"give it as --model {escape_for_display(name, 80)} and leave network out"
        )
    return name


def _find_local_file(key: str, text: str, folder: Path) -> str:
    """The absolute path of a file that the settings name, relative to their folder."""
    path = (folder / text).absolute()
    if not _is_file(path):
        raise SightlineError(
            f"{SETTINGS_FILE}: {key} is {text!r:.80}; there is no such file on this machine"
        )
    return str(path)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # no path at all: too long, or with a null character
        return False


def _describe_problem(error: ValidationError) -> str:
    """The first thing that is wrong: the key, and what is allowed."""
    first: Any = error.errors()[0]
    key = escape_for_display(str(first["loc"][0]), 80)
    if first["type"] == "extra_forbidden":
        allowed = tuple(ProjectSettings.model_fields)
        return f"there is no key {key!r}{suggest_closest_name(key, allowed)}"
    return f"{key} is {first['input']!r:.60} ({first['msg'].lower()})"
