"""The names of networks that can be loaded, without importing the libraries they come from.

Importing torchvision and timm takes seconds. Both register a network with a decorator over the
function that builds it, so the names can be read from the source of the installed packages.
"""

import mimetypes
import re
from importlib.util import find_spec
from pathlib import Path

# The networks that come with Sightline: the default, and the one that is trained plainly.
EMBEDDED_NETWORKS = ("sightnet", "sightnet_plain")

# Those of the others take films or two images, or are quantized.
TORCHVISION_FOLDERS = ("detection", "segmentation")

# A decorated function: `@register_model` or `@register_model()`, further decorators, `def NAME(`.
# A decorator's arguments may go on over further, indented lines.
REGISTERED_FUNCTION = re.compile(
    r"""
    ^@register_model(?:\(\))?\n
    (?:@.*\n|[ ].*\n|\)\n)*
    def[ ](\w+)\(
    """,
    re.MULTILINE | re.VERBOSE,
)


def list_network_names() -> dict[str, list[str]]:
    """Every name that `load` takes, by the library it comes from.

    Networks of transformers are not listed; `load` takes them as "hf:NAME".
    """
    return {
        "sightline": list(EMBEDDED_NETWORKS),
        "torchvision": sorted(_read_registered_names("torchvision", *TORCHVISION_FOLDERS)),
        "timm": sorted(_read_registered_names("timm"), key=_split_numbers),
    }


def is_network_name(text: str) -> bool:
    """Whether `load` takes this text as the name of a network, and no image file is meant."""
    if re.fullmatch(r"[\w.]+:\w+|hf:\S+", text):
        return True
    names = list_network_names()
    if any(text in library for library in names.values()):
        return True
    # timm's names may go on with .TRAINING; "resnet50.jpg" is a picture.
    architecture, _, tag = text.partition(".")
    file_type, _ = mimetypes.guess_type(text)
    return bool(tag) and file_type is None and architecture in names["timm"]


def _read_registered_names(package: str, *subfolders: str) -> list[str]:
    """The functions under `@register_model` in PACKAGE/models and the subfolders of that."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return []
    folder = Path(spec.submodule_search_locations[0]) / "models"
    names: list[str] = []
    for subfolder in (".", *subfolders):
        for path in (folder / subfolder).glob("*.py"):
            names += REGISTERED_FUNCTION.findall(path.read_text(encoding="utf-8"))
    return names


def _split_numbers(name: str) -> list[int | str]:
    """The key of natural order: resnet9 comes before resnet10."""
    pieces = re.split(r"(\d+)", name.lower())
    return [int(piece) if piece.isdigit() else piece for piece in pieces]
