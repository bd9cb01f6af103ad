"""Style networks as files: half-precision safetensors that say in their header what they are. No code in them is run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..atomic import replacing
from ..errors import SightlineError, unknown
from ..weights import fill, read_weights
from .stylizer import Stylizer, seeded

KIND = "sightline-stylizer"
ASSETS = Path(__file__).parent.parent / "assets"
SHIPPED = {"painters": ASSETS / "painters.safetensors"}
PAINTINGS = ASSETS / "paintings"  # what the shipped network was taught, by the names of its styles


@dataclass(frozen=True)
class Styles:
    """A trained style network, ready to be applied, with its styles' names and what else its file tells of it."""

    network: Stylizer
    names: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def mix(self, weights: str | Mapping[str, float]) -> Tensor:
        """1×styles: one style by name, or several by weights that are brought to a sum of 1. Raises SightlineError for others."""
        given = {weights: 1.0} if isinstance(weights, str) else dict(weights)
        for name in given:
            if name not in self.names:
                raise unknown("style", name, self.names)
        if not given or any(weight < 0 for weight in given.values()) or sum(given.values()) <= 0:
            raise SightlineError(f"the weights of a blend are 0 or more and not all 0; given were {given}")
        row = [given.get(name, 0.0) / sum(given.values()) for name in self.names]
        return torch.tensor([row], device=self.network.last.conv.weight.device)


def blend(text: str) -> dict[str, float]:
    """The weights in «wave» or «wave:2,scream:1»; raises SightlineError for anything else."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = part.strip().partition(":")
        try:
            found[name] = float(weight or 1)
        except ValueError:
            raise SightlineError(f"{part.strip()!r} is not a style and its weight; NAME or NAME:2,NAME:1 is expected") from None
    return found


def write_styles(network: Stylizer, names: Sequence[str], path: Path, facts: Mapping[str, Any] | None = None) -> None:
    """Writes the network in half precision, whole or not at all."""
    from safetensors.torch import save_file

    head = {"kind": KIND, "styles": list(names), "width": network.width, "blocks": network.blocks, "norm": network.kind, **(facts or {})}
    state = {name: value.detach().cpu().half().contiguous() for name, value in network.state_dict().items() if value.is_floating_point()}
    with replacing(path) as temporary:
        save_file(state, temporary, {"sightline": json.dumps(head)})


def read_styles(source: str | Path, device: torch.device | str = "cpu") -> Styles:
    """A trained network from its file, or the shipped one by name. Raises SightlineError for a file of another kind."""
    path = SHIPPED.get(str(source), Path(source))
    if not path.is_file() and path.suffix != ".safetensors":
        raise unknown("style network", str(source), SHIPPED)
    state, head = read_weights(path), header(path)
    try:
        names = tuple(str(name) for name in head.pop("styles"))
        network = seeded(0, len(names), width=int(head.pop("width")), blocks=int(head.pop("blocks")), norm=head.pop("norm"))
    except (KeyError, TypeError, ValueError) as error:
        raise SightlineError(f"{path.name} is a damaged style network: its header lacks {error}") from error
    fill(network, state, path, "its style network")
    return Styles(network.to(device).eval(), names, head)


def header(path: Path) -> dict[str, Any]:
    """What the file says of itself; raises SightlineError if that is not a style network."""
    from safetensors import safe_open

    told: Any = None
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            told = json.loads((file.metadata() or {}).get("sightline", "null"))
    if not isinstance(told, dict) or told.get("kind") != KIND:
        raise SightlineError(f"{path.name} holds weights, but not of a style network; `sightline stylizer train` writes those")
    del told["kind"]
    return told
