"""Style networks as files: half-precision safetensors that say in their header what they are. No code in them is run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sightline.errors import SightlineError, make_unknown_name_error
from sightline.generators.architectures.adain import AdaINStylizer
from sightline.generators.architectures.style import Stylizer, make_stylizer
from sightline.images.files import replace_atomically
from sightline.images.io import limit_short_side
from sightline.images.library import ASSETS_FOLDER, PAINTING_NAMES, read_style_picture
from sightline.models.model import Model
from sightline.models.tracing.receptive_field import receptive_field
from sightline.models.weights.checkpoint import fill_network_weights, read_weights
from sightline.models.zoo.reload import load_recipe_model

FIXED_STYLE_KIND, ANY_STYLE_KIND = "sightline-stylizer", "sightline-any-style"

SHIPPED_STYLE_NETWORKS = {"painters": ASSETS_FOLDER / "painters.safetensors"}

DEFAULT_STYLE_SIZE = 256


@dataclass(frozen=True)
class FixedStyleNetwork:
    """A trained style network, ready to be applied, with its styles' names and what else its file tells of it."""

    network: Stylizer
    names: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def device(self) -> torch.device:
        return self.network.last.conv.weight.device

    def make_mix(self, weights: str | Mapping[str, float]) -> Tensor:
        """1×styles: one style by name, or several by weights that are brought to a sum of 1. Raises SightlineError for others."""
        given = {weights: 1.0} if isinstance(weights, str) else dict(weights)
        for name in given:
            if name not in self.names:
                raise make_unknown_name_error("style", name, self.names)
        shares = normalize_style_weights(given)
        return torch.tensor([[shares.get(name, 0.0) for name in self.names]], device=self.device)


@dataclass(frozen=True)
class AnyStyleNetwork:
    """A trained decoder for any style, ready to be applied, and what else its file tells of it. Its styles are pictures."""

    network: AdaINStylizer
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    names: tuple[str, ...] = PAINTING_NAMES  # those at hand without a file

    @property
    def device(self) -> torch.device:
        return self.network.model.device

    @torch.no_grad()
    def make_mix(
        self,
        weights: str | Mapping[str, float],
        strength: float = 1.0,
        size: int = DEFAULT_STYLE_SIZE,
    ) -> Tensor:
        """What the network takes for a style, or several by weights that are brought to a sum of 1: files, names of shipped paintings, or samples,
        each with `size` pixels on its short side if it has more. Raises SightlineError for what can't be read or is too small."""
        shares = normalize_style_weights({weights: 1.0} if isinstance(weights, str) else weights)
        rows = [
            share
            * self.network.make_style_row(self.read_style(name, size).to(self.device), strength)
            for name, share in shares.items()
        ]
        return torch.stack(rows).sum(0)

    def read_style(self, name: str, size: int) -> Tensor:
        image = limit_short_side(read_style_picture(name), size)
        check_style_size(image, self.network.model, self.network.deepest_layer, Path(name).name)
        return image


def normalize_style_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """Weights of a blend with a sum of 1; raises SightlineError for negative ones, or none above 0."""
    if (
        not weights
        or any(weight < 0 for weight in weights.values())
        or not 0 < sum(weights.values()) < float("inf")
    ):
        raise SightlineError(
            f"the weights of a blend are 0 or more and not all 0; given were {dict(weights)}"
        )
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def parse_style_blend(text: str) -> dict[str, float]:
    """The weights in «wave» or «wave:2,scream:1»; raises SightlineError for anything else."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = part.strip().partition(":")
        try:
            found[name] = float(weight or 1)
        except ValueError:
            raise SightlineError(
                f"{part.strip()!r} is not a style and its weight; NAME or NAME:2,NAME:1 is expected"
            ) from None
    return found


def write_fixed_style_network(
    network: Stylizer, names: Sequence[str], path: Path, metadata: Mapping[str, Any] | None = None
) -> None:
    """Writes the network in half precision, whole or not at all."""
    head = {
        "kind": FIXED_STYLE_KIND,
        "styles": list(names),
        "width": network.width,
        "blocks": network.blocks,
        "norm": network.norm_kind,
        **(metadata or {}),
    }
    save_network_file(network, path, head)


def write_any_style_network(
    network: AdaINStylizer, path: Path, metadata: Mapping[str, Any] | None = None
) -> None:
    """Writes a decoder for any style, and which network its encoder is, as `write_styles` does."""
    save_network_file(
        network, path, {"kind": ANY_STYLE_KIND, "encoder": network.model.recipe, **(metadata or {})}
    )


def save_network_file(network: nn.Module, path: Path, header: Mapping[str, Any]) -> None:
    from safetensors.torch import save_file

    state = {
        name: value.detach().cpu().half().contiguous()
        for name, value in network.state_dict().items()
        if value.is_floating_point()
    }
    with replace_atomically(path) as temporary:
        save_file(state, temporary, {"sightline": json.dumps(header)})


def read_style_network(
    source: str | Path, device: torch.device | str = "cpu"
) -> FixedStyleNetwork | AnyStyleNetwork:
    """A trained network of either kind from its file, or a shipped one by name. Raises SightlineError for a file of another kind."""
    path = SHIPPED_STYLE_NETWORKS.get(str(source), Path(source))
    if not path.is_file() and path.suffix != ".safetensors":
        raise make_unknown_name_error("style network", str(source), SHIPPED_STYLE_NETWORKS)
    state, head = read_weights(path), read_network_header(path)
    try:
        if head.pop("kind") == ANY_STYLE_KIND:
            network = AdaINStylizer(load_recipe_model(head.pop("encoder"), device))
            fill_network_weights(network, state, path, "its decoder")
            return AnyStyleNetwork(network.eval(), head)
        names = tuple(str(name) for name in head.pop("styles"))
        network = make_stylizer(
            0,
            len(names),
            width=int(head.pop("width")),
            blocks=int(head.pop("blocks")),
            norm=head.pop("norm"),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise SightlineError(
            f"{path.name} is a damaged style network: its header lacks {error}"
        ) from error
    fill_network_weights(network, state, path, "its style network")
    return FixedStyleNetwork(network.to(device).eval(), names, head)


def read_fixed_style_network(
    source: str | Path, device: torch.device | str = "cpu"
) -> FixedStyleNetwork:
    """`read_painter` for networks of given styles only."""
    found = read_style_network(source, device)
    if isinstance(found, AnyStyleNetwork):
        raise SightlineError(
            f"{Path(source).name} is a network for any style; here one of given styles is needed"
        )
    return found


def read_network_header(path: Path) -> dict[str, Any]:
    """What the file says of itself; raises SightlineError if that is not a style network."""
    from safetensors import safe_open

    told: Any = None
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            told = json.loads((file.metadata() or {}).get("sightline", "null"))
    if not isinstance(told, dict) or told.get("kind") not in (FIXED_STYLE_KIND, ANY_STYLE_KIND):
        raise SightlineError(
            f"{path.name} holds weights, but not of a style network; `sightline stylizer train` writes those"
        )
    return told


def check_style_size(image: Tensor, model: Model, layer: str, name: str) -> None:
    """Raises SightlineError for a style image of which the deepest style layer would see mostly border."""
    height, width = image.shape[-2:]
    least = max(receptive_field(model, layer).size)
    if min(height, width) < least:
        raise SightlineError(
            f"{name} is {height}×{width} pixels at this style size; {layer} of {model.name} sees {least}: use a larger picture or style size"
        )
