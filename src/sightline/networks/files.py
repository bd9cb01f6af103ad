"""Style networks as files: half-precision safetensors that say in their header what they are. No code in them is run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import image as images
from ..atomic import replacing
from ..errors import SightlineError, unknown
from ..recipe import model_of
from ..weights import fill, read_weights
from .adain import AnyStyle
from .stylizer import Stylizer, seeded
from .teacher import check_style

KIND, ANY = "sightline-stylizer", "sightline-any-style"
ASSETS = Path(__file__).parent.parent / "assets"
SHIPPED = {"painters": ASSETS / "painters.safetensors"}
PAINTINGS = ASSETS / "paintings"  # what the shipped network was taught, by the names of its styles
PAINTED = tuple(path.stem for path in sorted(PAINTINGS.glob("*.jpg")))
STYLE_SIZE = 256


@dataclass(frozen=True)
class Styles:
    """A trained style network, ready to be applied, with its styles' names and what else its file tells of it."""

    network: Stylizer
    names: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def device(self) -> torch.device:
        return self.network.last.conv.weight.device

    def mix(self, weights: str | Mapping[str, float]) -> Tensor:
        """1×styles: one style by name, or several by weights that are brought to a sum of 1. Raises SightlineError for others."""
        given = {weights: 1.0} if isinstance(weights, str) else dict(weights)
        for name in given:
            if name not in self.names:
                raise unknown("style", name, self.names)
        shares = normalized(given)
        return torch.tensor([[shares.get(name, 0.0) for name in self.names]], device=self.device)


@dataclass(frozen=True)
class AnyStyles:
    """A trained decoder for any style, ready to be applied, and what else its file tells of it. Its styles are pictures."""

    network: AnyStyle
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    names: tuple[str, ...] = PAINTED  # those at hand without a file

    @property
    def device(self) -> torch.device:
        return self.network.model.device

    @torch.no_grad()
    def mix(self, weights: str | Mapping[str, float], strength: float = 1.0, size: int = STYLE_SIZE) -> Tensor:
        """What the network takes for a style, or several by weights that are brought to a sum of 1: files, names of shipped paintings, or samples,
        each with `size` pixels on its short side if it has more. Raises SightlineError for what can't be read or is too small."""
        shares = normalized({weights: 1.0} if isinstance(weights, str) else weights)
        rows = [share * self.network.row(self.picture(name, size).to(self.device), strength) for name, share in shares.items()]
        return torch.stack(rows).sum(0)

    def picture(self, name: str, size: int) -> Tensor:
        image = images.at_most(painting(name), size)
        check_style(image, self.network.model, self.network.deepest, Path(name).name)
        return image


def painting(picture: Tensor | str | Path) -> Tensor:
    """A style picture N×3×H×W: a shipped painting by its name, else what `image.given` reads."""
    shipped = isinstance(picture, str) and picture in PAINTED and not Path(picture).exists()
    return images.read(PAINTINGS / f"{picture}.jpg") if shipped else images.given(picture)


def normalized(weights: Mapping[str, float]) -> dict[str, float]:
    """Weights of a blend with a sum of 1; raises SightlineError for negative ones, or none above 0."""
    if not weights or any(weight < 0 for weight in weights.values()) or not 0 < sum(weights.values()) < float("inf"):
        raise SightlineError(f"the weights of a blend are 0 or more and not all 0; given were {dict(weights)}")
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


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
    head = {"kind": KIND, "styles": list(names), "width": network.width, "blocks": network.blocks, "norm": network.kind, **(facts or {})}
    save(network, path, head)


def write_any(network: AnyStyle, path: Path, facts: Mapping[str, Any] | None = None) -> None:
    """Writes a decoder for any style, and which network its encoder is, as `write_styles` does."""
    save(network, path, {"kind": ANY, "encoder": network.model.recipe, **(facts or {})})


def save(network: nn.Module, path: Path, head: Mapping[str, Any]) -> None:
    from safetensors.torch import save_file

    state = {name: value.detach().cpu().half().contiguous() for name, value in network.state_dict().items() if value.is_floating_point()}
    with replacing(path) as temporary:
        save_file(state, temporary, {"sightline": json.dumps(head)})


def read_painter(source: str | Path, device: torch.device | str = "cpu") -> Styles | AnyStyles:
    """A trained network of either kind from its file, or a shipped one by name. Raises SightlineError for a file of another kind."""
    path = SHIPPED.get(str(source), Path(source))
    if not path.is_file() and path.suffix != ".safetensors":
        raise unknown("style network", str(source), SHIPPED)
    state, head = read_weights(path), header(path)
    try:
        if head.pop("kind") == ANY:
            network = AnyStyle(model_of(head.pop("encoder"), device))
            fill(network, state, path, "its decoder")
            return AnyStyles(network.eval(), head)
        names = tuple(str(name) for name in head.pop("styles"))
        network = seeded(0, len(names), width=int(head.pop("width")), blocks=int(head.pop("blocks")), norm=head.pop("norm"))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise SightlineError(f"{path.name} is a damaged style network: its header lacks {error}") from error
    fill(network, state, path, "its style network")
    return Styles(network.to(device).eval(), names, head)


def read_styles(source: str | Path, device: torch.device | str = "cpu") -> Styles:
    """`read_painter` for networks of given styles only."""
    found = read_painter(source, device)
    if isinstance(found, AnyStyles):
        raise SightlineError(f"{Path(source).name} is a network for any style; here one of given styles is needed")
    return found


def header(path: Path) -> dict[str, Any]:
    """What the file says of itself; raises SightlineError if that is not a style network."""
    from safetensors import safe_open

    told: Any = None
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            told = json.loads((file.metadata() or {}).get("sightline", "null"))
    if not isinstance(told, dict) or told.get("kind") not in (KIND, ANY):
        raise SightlineError(f"{path.name} holds weights, but not of a style network; `sightline stylizer train` writes those")
    return told
