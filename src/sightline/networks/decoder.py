"""Up-convolutional networks that paint a picture from features, in one forward pass (Dosovitskiy & Brox 2016).

Trained on the embedded network alone (`training/generator.py`). They serve learned inversion.
"""

from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import SightlineError
from ..model import Model
from ..weights import fill, read_weights

# Channels after each doubling of the size, by the layer that is read. The first has no place left in it: a linear layer makes one.
LAYERS = {"penultimate": (136, 112, 64, 32, 16), "relu4_2": (136, 112, 64, 32, 16)}
SHIPPED = ("relu4_2",)
PLACES = 6  # rows and columns that the linear layer makes: pictures of 96 px
FAR = 4.0  # standard deviations at which a feature is cut off; some are seldom active, and then far out
ASSETS = Path(__file__).parents[1] / "assets"
WEIGHTS = ASSETS / "generator.safetensors"
# The network whose features were learned from.
SOURCE = "9ae86273697621ccddc40772223ea81a8d9a3c5da0146c95851691b53efb9b17"


class Decoder(nn.Module):
    """Features N×C (C×1×1) or N×C×h×w to pictures N×3×16h×16w in [0, 1]; features without places give 96×96 pixels.

    `mean` and `deviation`, 1×C×1×1, are those of the features over the training images: the input is standardized by them,
    and `mean + 3·deviation` bounds the codes that a picture may be made from.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int, widths: tuple[int, ...], *, places: int = 0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("deviation", torch.ones(1, channels, 1, 1))
        first = 48 if places else channels
        self.places = nn.ConvTranspose2d(channels, first, places) if places else None
        self.enter = nn.Conv2d(first, widths[0], 3, padding=1)
        self.up = nn.ModuleList(nn.Conv2d(before, after, 3, padding=1) for before, after in pairwise(widths))
        self.refine = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for width in widths[:3])
        self.paint = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """The pictures."""
        code = features[..., None, None] if features.ndim == 2 else features
        x = ((code - self.mean) / self.deviation).clamp(-FAR, FAR)
        x = self.enter(even(self.places(x)) if self.places else x)
        for index, widen in enumerate(self.up):
            x = even(x)
            if index < len(self.refine):
                x = x + even(self.refine[index](x))
            # Enlarged first, then convolved: no checkerboard, which transposed convolutions leave.
            x = widen(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.paint(even(x)).sigmoid()


def even(x: Tensor) -> Tensor:
    """What stands between the convolutions: a leaky ReLU (Dosovitskiy & Brox 2016), then each place brought to one strength
    (Karras 2018), which keeps the training steady without statistics of a batch."""
    x = F.leaky_relu(x, 0.3)
    return x * (x.square().mean(1, keepdim=True) + 1e-6).rsqrt()


def untrained(layer: str) -> Decoder:
    """The architecture for a layer of LAYERS, with random weights."""
    return Decoder(256, LAYERS[layer], places=PLACES if layer == "penultimate" else 0)


@cache
def trained(layer: str) -> Decoder:
    """The decoder of a layer of SHIPPED."""
    state = {name.removeprefix(f"{layer}."): value.float() for name, value in read_weights(WEIGHTS).items() if name.startswith(f"{layer}.")}
    decoder = untrained(layer)
    fill(decoder, state, WEIGHTS, f"the generator of {layer}")
    return decoder.eval().requires_grad_(False)


def known(model: Model) -> dict[str, str]:
    """The model's own names of the layers that have a decoder, each with its name in SHIPPED.

    Raises SightlineError for another network than the embedded one.
    """
    if model.recipe.get("sha256") != SOURCE:
        raise SightlineError(f"the generator knows the features of sightnet with its embedded weights, not those of {model.name}")
    return {model.layer(layer): layer for layer in SHIPPED}


def decoder_of(model: Model, layer: str) -> Decoder:
    """The decoder of a model's layer, on its device. Raises SightlineError if there is none."""
    found, name = known(model), model.layer(layer)
    if name not in found:
        raise SightlineError(f"{layer} has no generator; choose from {', '.join(found.values())}")
    return trained(found[name]).to(model.device)
