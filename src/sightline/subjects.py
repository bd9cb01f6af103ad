"""What a method's command is about: a network, or a store that knows its network, and an image or a goal."""

from collections.abc import Mapping, Sequence
from typing import Any

from . import zoo
from .catalog import Method
from .model import Model
from .scans import Scan


def looked_into(
    method: Method, network: str | None, named: Sequence[str | None], options: dict[str, Any], common: Mapping[str, Any]
) -> tuple[Model | Scan, list[str]]:
    """The network, or a store in its place, and the subject's name if there is one. A store alone knows its network; a name beside it is the image's."""
    store = options.get("store") if not options.get("folder") else None
    if store and method.subject and network and not any(named):
        network, named = None, [network]
    elif (
        method.subject == "image"
        and not any(named)
        and all(options.get(name) is None for name in ("id", "unit") if "store" in method.fields)
    ):
        named = ["rocket"]
    own = store and network is None
    model = Scan.open(options.pop("store")) if own else zoo.load(network or "sightnet", weights=common["weights"], device=common["device"])
    return model, [name for name in named if name] if method.subject == "image" else [name or "" for name in named]
