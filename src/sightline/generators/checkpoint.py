"""Style networks as files: half-precision safetensors whose header says what they are.

A file is data that people pass on. No code in it is run, and its header is checked before a network
is built from it.
"""

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sightline.errors import SightlineError, make_unknown_name_error
from sightline.generators.architectures.adain import AdaINStylizer
from sightline.generators.architectures.style import Stylizer, make_stylizer
from sightline.generators.header import (
    ANY_STYLE_KIND,
    FIXED_STYLE_KIND,
    HEADER_KEY,
    AnyStyleHeader,
    FixedStyleHeader,
    read_network_header,
)
from sightline.images.files import replace_atomically
from sightline.images.io.library import ASSETS_FOLDER, PAINTING_NAMES, read_style_picture
from sightline.images.transforms import limit_short_side
from sightline.models.model import Model
from sightline.models.tracing.receptive_field import receptive_field
from sightline.models.weights.checkpoint import fill_network_weights, read_weights
from sightline.models.zoo.reload import load_recipe_model
from sightline.registry.method import hash_tensor

SHIPPED_STYLE_NETWORKS = {"painters": ASSETS_FOLDER / "painters.safetensors"}

# Short side in pixels of the pictures that an any-style network takes as styles.
DEFAULT_STYLE_SIZE = 256

StyleWeights = Mapping[str, float]


# ── networks with their facts ──


@dataclass(frozen=True)
class FixedStyleNetwork:
    """A trained network for fixed styles, with their names and its file's other metadata."""

    network: Stylizer
    names: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def device(self) -> torch.device:
        return self.network.last.conv.weight.device

    def make_mix(self, weights: str | StyleWeights) -> Tensor:
        """The network's second input, 1×styles: the weight of each style, with a sum of 1.

        `weights` is the name of a style, or weights by name. Raises SightlineError for unknown
        names and for weights that are negative or all 0.
        """
        named_weights = {weights: 1.0} if isinstance(weights, str) else dict(weights)
        for name in named_weights:
            if name not in self.names:
                raise make_unknown_name_error("style", name, self.names)
        shares = normalize_style_weights(named_weights)

        row = [shares.get(name, 0.0) for name in self.names]
        return torch.tensor([row], device=self.device)


@dataclass(frozen=True)
class AnyStyleNetwork:
    """A trained network that takes any picture as style, with its file's other metadata."""

    network: AdaINStylizer
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    names: tuple[str, ...] = PAINTING_NAMES  # the styles that need no file

    @property
    def device(self) -> torch.device:
        return self.network.model.device

    @torch.no_grad()
    def make_mix(
        self,
        weights: str | StyleWeights,
        strength: float = 1.0,
        size: int = DEFAULT_STYLE_SIZE,
    ) -> Tensor:
        """The network's second input, 1×(2C + 1): blended statistics of the styles.

        `weights` is one style, or weights by style; a style is an image file, a shipped painting or
        a sample. `strength` in [0, 1] is how far the content's statistics move to the style's.
        Styles with more than `size` pixels on their short side are reduced to that. Raises
        SightlineError for styles that can't be read or are too small, and for weights that are
        negative or all 0.
        """
        named_weights = {weights: 1.0} if isinstance(weights, str) else weights
        shares = normalize_style_weights(named_weights)
        rows: list[Tensor] = []
        for name, share in shares.items():
            style = self.read_style(name, size).to(self.device)
            row = self.network.make_style_row(style, strength)
            rows.append(share * row)
        return torch.stack(rows).sum(0)

    def read_style(self, name: str, size: int) -> Tensor:
        """Reads a style 1×3×H×W. Raises SightlineError where it can't be read or is too small."""
        image = limit_short_side(read_style_picture(name), size)
        check_style_size(image, self.network.model, self.network.deepest_layer, Path(name).name)
        return image


# ── blends ──


def normalize_style_weights(weights: StyleWeights) -> dict[str, float]:
    """Scales weights to a sum of 1.

    Raises SightlineError where a weight is negative, or the sum 0, infinite or NaN.
    """
    total = sum(weights.values())
    has_negative = any(weight < 0 for weight in weights.values())
    if has_negative or not 0 < total < math.inf:
        raise SightlineError(
            f"the weights of a blend must be 0 or more and not all 0; got {dict(weights)}"
        )
    return {name: weight / total for name, weight in weights.items()}


def parse_style_blend(text: str, names: Collection[str] = ()) -> dict[str, float]:
    """Parses "wave" or "wave:2,scream:1" into weights by name.

    A text among `names` is that style, whatever commas and colons are in it. Raises SightlineError
    for a weight that is no number, and for a style that is given twice.
    """
    if text in names:
        return {text: 1.0}
    weights: dict[str, float] = {}
    for item in text.split(","):
        name, _, weight = item.strip().partition(":")
        if name in weights:
            raise SightlineError(f"the style {name!r} is given twice; give one weight for it")
        try:
            weights[name] = float(weight or 1)
        except ValueError:
            raise SightlineError(
                f"{item.strip()!r} is not a style and its weight; expected NAME or NAME:2,NAME:1"
            ) from None
    return weights


# ── files ──


def write_fixed_style_network(
    network: Stylizer, names: Sequence[str], path: Path, metadata: Mapping[str, Any] | None = None
) -> None:
    """Writes the network in half precision, whole or not at all.

    `metadata`, values that JSON can hold, is added to the header.
    """
    header = {
        "kind": FIXED_STYLE_KIND,
        "styles": list(names),
        "width": network.width,
        "blocks": network.blocks,
        "norm": network.norm_kind,
        **(metadata or {}),
    }
    save_network_file(network, path, header)


def write_any_style_network(
    network: AdaINStylizer, path: Path, metadata: Mapping[str, Any] | None = None
) -> None:
    """Writes the decoder, and the recipe of its encoder, as `write_fixed_style_network` does."""
    header = {"kind": ANY_STYLE_KIND, "encoder": network.model.recipe, **(metadata or {})}
    save_network_file(network, path, header)


def save_network_file(network: nn.Module, path: Path, header: Mapping[str, Any]) -> None:
    """Writes the floating-point state of a network as half-precision safetensors."""
    from safetensors.torch import save

    state = {
        name: value.detach().cpu().half().contiguous()
        for name, value in network.state_dict().items()
        if value.is_floating_point()
    }
    complete_header = {**header, "sha256": hash_tensors(state)}
    with replace_atomically(path) as temporary:
        # `save_file` would make the file readable by its owner only.
        temporary.write_bytes(save(state, {HEADER_KEY: json.dumps(complete_header)}))


def hash_tensors(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(hash_tensor(state[name]).encode())
    return digest.hexdigest()


def check_weights_digest(
    header: FixedStyleHeader | AnyStyleHeader, state: Mapping[str, Tensor], path: Path
) -> None:
    """Raises SightlineError where tensors were exchanged or changed since they were written.

    Their shapes alone don't tell: many of a network's tensors have the same.
    """
    if header.sha256 is not None and header.sha256 != hash_tensors(state):
        raise SightlineError(
            f"{path.name} is a damaged style network: its weights are not those that were written"
        )


def read_style_network(
    source: str | Path, device: torch.device | str = "cpu"
) -> FixedStyleNetwork | AnyStyleNetwork:
    """Reads a trained network of either kind from a file, or a shipped one by name.

    Raises SightlineError for a missing or damaged file and for one that holds no style network.
    """
    path = SHIPPED_STYLE_NETWORKS.get(str(source), Path(source))
    if not path.is_file() and path.suffix != ".safetensors":
        raise make_unknown_name_error("style network", str(source), SHIPPED_STYLE_NETWORKS)
    state = read_weights(path)
    header = read_network_header(path)
    metadata = dict(header.model_extra or {})

    if isinstance(header, AnyStyleHeader):
        any_style_network = AdaINStylizer(load_recipe_model(header.encoder, device))
        fill_network_weights(any_style_network, state, path, "its decoder")
        check_weights_digest(header, state, path)
        return AnyStyleNetwork(any_style_network.eval(), metadata)

    check_weight_count(header, state, path)
    network = make_stylizer(
        0, len(header.styles), width=header.width, blocks=header.blocks, norm=header.norm
    )
    fill_network_weights(network, state, path, "its style network")
    check_weights_digest(header, state, path)
    return FixedStyleNetwork(network.to(device).eval(), tuple(header.styles), metadata)


def check_weight_count(header: FixedStyleHeader, state: Mapping[str, Tensor], path: Path) -> None:
    """Raises SightlineError where the header describes more weights than the file holds.

    A header of a few bytes within its ranges can ask for 20 GB. The network is built without memory
    here.
    """
    with torch.device("meta"):
        described_network = Stylizer(
            len(header.styles), width=header.width, blocks=header.blocks, norm=header.norm
        )
    described_count = sum(parameter.numel() for parameter in described_network.parameters())
    stored_count = sum(value.numel() for value in state.values())
    if described_count > stored_count:
        raise SightlineError(
            f"{path.name} is a damaged style network: its header describes {described_count:,}"
            f" weights, the file holds {stored_count:,}"
        )


def read_fixed_style_network(
    source: str | Path, device: torch.device | str = "cpu"
) -> FixedStyleNetwork:
    """`read_style_network` for fixed styles; raises SightlineError for a network of any style."""
    style_network = read_style_network(source, device)
    if isinstance(style_network, AnyStyleNetwork):
        raise SightlineError(
            f"{Path(source).name} is a network for any style;"
            " a network with a fixed set of styles is needed here"
        )
    return style_network


def check_style_size(image: Tensor, model: Model, layer: str, name: str) -> None:
    """Raises SightlineError for a style image smaller than the deepest layer's receptive field.

    In a smaller one every position of that layer sees the border.
    """
    height, width = image.shape[-2:]
    field_side = max(receptive_field(model, layer).size)
    if min(height, width) < field_side:
        raise SightlineError(
            f"{name} is {height}×{width} pixels at this style size, but {layer} of {model.name}"
            f" sees {field_side} pixels: use a larger picture or style size"
        )
