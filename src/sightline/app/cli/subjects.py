"""What a method's command is about: a network, or a store that knows its network, and an image or a goal."""

from collections.abc import Mapping, Sequence
from typing import Any

from sightline.data.store.reader import Scan
from sightline.models.model import Model
from sightline.models.zoo.load import load
from sightline.registry.method import Method


def load_model_and_subject(
    method: Method,
    network: str | None,
    subject_names: Sequence[str | None],
    options: dict[str, Any],
    shared_options: Mapping[str, Any],
) -> tuple[Model | Scan, list[str]]:
    """The network, or a store in its place, and the subject's name if there is one. A store alone knows its network; a name beside it is the image's."""
    store = options.get("store") if not options.get("folder") else None
    if store and method.subject and network and not any(subject_names):
        network, subject_names = None, [network]
    elif (
        method.subject == "image"
        and not any(subject_names)
        and all(
            options.get(name) is None for name in ("id", "unit") if "store" in method.parameters
        )
    ):
        subject_names = ["rocket"]
    own = store and network is None
    model = (
        Scan.open(options.pop("store"))
        if own
        else load(
            network or "sightnet",
            weights=shared_options["weights"],
            device=shared_options["device"],
        )
    )
    return model, [name for name in subject_names if name] if method.subject == "image" else [
        name or "" for name in subject_names
    ]
