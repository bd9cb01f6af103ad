"""Up-convolutional networks that paint a picture from features, in one forward pass (Dosovitskiy & Brox 2016).

Trained on the embedded network alone (`training/generator.py`, `training/composer.py`). They serve learned inversion, and ascent from a
generator's code (Nguyen 2016), for which the pictures may be shown to any network.
"""

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import SightlineError
from ..model import Model
from ..weights import fill, read_weights

CHANNELS = 256  # of relu4_2 and of the last features
WIDTHS = (136, 112, 64, 32, 16)  # channels of the decoder at the features' size and after each doubling of it
PLACES, SKETCH, BROAD = 6, 48, 192  # rows and columns that a vector is spread over, and the channels while it is
FAR = 4.0  # standard deviations at which a feature is cut off; some are seldom active, and then far out
ASSETS = Path(__file__).parents[1] / "assets"
WEIGHTS = ASSETS / "generator.safetensors"
# The network whose features were learned from.
SOURCE = "9ae86273697621ccddc40772223ea81a8d9a3c5da0146c95851691b53efb9b17"

Network = TypeVar("Network", bound=nn.Module)


class Decoder(nn.Module):
    """Features of relu4_2, N×256×h×w, to pictures N×3×16h×16w in [0, 1].

    `mean` and `deviation`, 1×256×1×1, are those of the features over the training images; the input is standardized by them.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, CHANNELS, 1, 1))
        self.register_buffer("deviation", torch.ones(1, CHANNELS, 1, 1))
        self.enter = nn.Conv2d(CHANNELS, WIDTHS[0], 3, padding=1)
        self.up = nn.ModuleList(nn.Conv2d(before, after, 3, padding=1) for before, after in pairwise(WIDTHS))
        self.refine = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for width in WIDTHS[:3])
        self.paint = nn.Conv2d(WIDTHS[-1], 3, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """The pictures."""
        x = self.enter(((features - self.mean) / self.deviation).clamp(-FAR, FAR))
        for index, widen in enumerate(self.up):
            x = even(x)
            if index < len(self.refine):
                x = x + even(self.refine[index](x))
            # Enlarged first, then convolved: no checkerboard, which transposed convolutions leave.
            x = widen(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.paint(even(x)).sigmoid()


class Composer(nn.Module):
    """The last features, N×256, to pictures N×3×96×96 in [0, 1], by way of features of relu4_2 that a decoder paints.

    `mean` and `deviation`, 1×256, are those of the last features over the training images; `mean + 3·deviation` bounds the
    codes that a picture may be made from (Nguyen 2016).
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, CHANNELS))
        self.register_buffer("deviation", torch.ones(1, CHANNELS))
        self.places = nn.Linear(CHANNELS, SKETCH * PLACES**2)
        self.enter = nn.Conv2d(SKETCH, BROAD, 3, padding=1)
        self.refine = nn.Conv2d(BROAD, BROAD, 3, padding=1)
        self.leave = nn.Conv2d(BROAD, CHANNELS, 3, padding=1)
        self.decoder = decoder

    def composed(self, code: Tensor) -> Tensor:
        """Features of relu4_2, N×256×6×6."""
        x = self.places(((code - self.mean) / self.deviation).clamp(-FAR, FAR))
        x = self.enter(even(x.unflatten(1, (SKETCH, PLACES, PLACES))))
        x = self.leave(even(x + self.refine(even(x))))
        return (self.decoder.mean + self.decoder.deviation * x).relu()

    def forward(self, code: Tensor) -> Tensor:
        """The pictures."""
        return self.decoder(self.composed(code))


def even(x: Tensor) -> Tensor:
    """What stands between the convolutions: a leaky ReLU (Dosovitskiy & Brox 2016), then each place brought to one strength
    (Karras 2018), which keeps the training steady without statistics of a batch."""
    x = F.leaky_relu(x, 0.3)
    return x * (x.square().mean(1, keepdim=True) + 1e-6).rsqrt()


@cache
def decoder() -> Decoder:
    """The trained decoder of relu4_2."""
    return filled(Decoder(), {}, "relu4_2")


@cache
def composer() -> Composer:
    """The trained composer of the last features."""
    painter = decoder()
    return filled(Composer(painter), {f"decoder.{name}": value for name, value in painter.state_dict().items()}, "penultimate")


def filled(network: Network, more: dict[str, Tensor], layer: str) -> Network:
    """The network with the shipped weights of a layer, and others."""
    own = {name.removeprefix(f"{layer}."): value.float() for name, value in read_weights(WEIGHTS).items() if name.startswith(f"{layer}.")}
    fill(network, own | more, WEIGHTS, f"the generator of {layer}")
    return network.eval().requires_grad_(False)


LAYERS: dict[str, Callable[[], Decoder | Composer]] = {"relu4_2": decoder, "penultimate": composer}


def known(model: Model) -> dict[str, str]:
    """The model's own names of the layers that have a generator, each with its name in LAYERS.

    Raises SightlineError for another network than the embedded one.
    """
    if model.recipe.get("sha256") != SOURCE:
        raise SightlineError(f"the generator knows the features of sightnet with its embedded weights, not those of {model.name}")
    return {model.layer(layer): layer for layer in LAYERS}


def generator_of(model: Model, layer: str) -> Decoder | Composer:
    """The generator of a model's layer, on its device. Raises SightlineError if there is none."""
    found, name = known(model), model.layer(layer)
    if name not in found:
        raise SightlineError(f"{layer} has no generator; choose from {', '.join(found.values())}")
    return LAYERS[found[name]]().to(model.device)
