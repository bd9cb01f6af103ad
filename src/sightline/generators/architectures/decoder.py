"""Up-convolutional networks that paint a picture from features, in one forward pass (Dosovitskiy & Brox 2016).

Trained on the embedded network alone (`training/generator.py`, `training/composer.py`). They serve learned inversion, and ascent from a
generator's code (Nguyen 2016), for which the pictures may be shown to any network.
"""

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.errors import SightlineError
from sightline.images.library import ASSETS_FOLDER
from sightline.models.model import Model
from sightline.models.weights.checkpoint import fill_network_weights, read_weights

FEATURE_CHANNELS = 256  # of relu4_2 and of the last features

DECODER_WIDTHS = (
    136,
    112,
    64,
    32,
    16,
)  # channels of the decoder at the features' size and after each doubling of it

GRID_SIDE, GRID_CHANNELS, HIDDEN_CHANNELS = (
    6,
    48,
    192,
)  # rows and columns that a vector is spread over, and the channels while it is

CLIP_DEVIATIONS = 4.0  # standard deviations at which a feature is cut off; some are seldom active, and then far out


GENERATOR_WEIGHTS = ASSETS_FOLDER / "generator.safetensors"

# The network whose features were learned from.
SOURCE_NETWORK_SHA256 = "9ae86273697621ccddc40772223ea81a8d9a3c5da0146c95851691b53efb9b17"

NetworkT = TypeVar("NetworkT", bound=nn.Module)


class FeatureDecoder(nn.Module):
    """Features of relu4_2, N×256×h×w, to pictures N×3×16h×16w in [0, 1].

    `mean` and `deviation`, 1×256×1×1, are those of the features over the training images; the input is standardized by them.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, FEATURE_CHANNELS, 1, 1))
        self.register_buffer("deviation", torch.ones(1, FEATURE_CHANNELS, 1, 1))
        self.enter = nn.Conv2d(FEATURE_CHANNELS, DECODER_WIDTHS[0], 3, padding=1)
        self.up = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1) for before, after in pairwise(DECODER_WIDTHS)
        )
        self.refine = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1) for width in DECODER_WIDTHS[:3]
        )
        self.paint = nn.Conv2d(DECODER_WIDTHS[-1], 3, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """The pictures."""
        x = self.enter(
            ((features - self.mean) / self.deviation).clamp(-CLIP_DEVIATIONS, CLIP_DEVIATIONS)
        )
        for index, widen in enumerate(self.up):
            x = activate_and_normalize(x)
            if index < len(self.refine):
                x = x + activate_and_normalize(self.refine[index](x))
            # Enlarged first, then convolved: no checkerboard, which transposed convolutions leave.
            x = widen(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.paint(activate_and_normalize(x)).sigmoid()


class CodeGenerator(nn.Module):
    """The last features, N×256, to pictures N×3×96×96 in [0, 1], by way of features of relu4_2 that a decoder paints.

    `mean` and `deviation`, 1×256, are those of the last features over the training images; `mean + 3·deviation` bounds the
    codes that a picture may be made from (Nguyen 2016).
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, decoder: FeatureDecoder) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, FEATURE_CHANNELS))
        self.register_buffer("deviation", torch.ones(1, FEATURE_CHANNELS))
        self.places = nn.Linear(FEATURE_CHANNELS, GRID_CHANNELS * GRID_SIDE**2)
        self.enter = nn.Conv2d(GRID_CHANNELS, HIDDEN_CHANNELS, 3, padding=1)
        self.refine = nn.Conv2d(HIDDEN_CHANNELS, HIDDEN_CHANNELS, 3, padding=1)
        self.leave = nn.Conv2d(HIDDEN_CHANNELS, FEATURE_CHANNELS, 3, padding=1)
        self.decoder = decoder

    def predict_features(self, code: Tensor) -> Tensor:
        """Features of relu4_2, N×256×6×6."""
        x = self.places(
            ((code - self.mean) / self.deviation).clamp(-CLIP_DEVIATIONS, CLIP_DEVIATIONS)
        )
        x = self.enter(
            activate_and_normalize(x.unflatten(1, (GRID_CHANNELS, GRID_SIDE, GRID_SIDE)))
        )
        x = self.leave(activate_and_normalize(x + self.refine(activate_and_normalize(x))))
        return (self.decoder.mean + self.decoder.deviation * x).relu()

    def forward(self, code: Tensor) -> Tensor:
        """The pictures."""
        return self.decoder(self.predict_features(code))


def activate_and_normalize(x: Tensor) -> Tensor:
    """What stands between the convolutions: a leaky ReLU (Dosovitskiy & Brox 2016), then each place brought to one strength
    (Karras 2018), which keeps the training steady without statistics of a batch."""
    x = F.leaky_relu(x, 0.3)
    return x * (x.square().mean(1, keepdim=True) + 1e-6).rsqrt()


@cache
def load_feature_decoder() -> FeatureDecoder:
    """The trained decoder of relu4_2."""
    return load_generator_weights(FeatureDecoder(), {}, "relu4_2")


@cache
def load_code_generator() -> CodeGenerator:
    """The trained composer of the last features."""
    painter = load_feature_decoder()
    return load_generator_weights(
        CodeGenerator(painter),
        {f"decoder.{name}": value for name, value in painter.state_dict().items()},
        "penultimate",
    )


def load_generator_weights(
    network: NetworkT, extra_weights: dict[str, Tensor], layer: str
) -> NetworkT:
    """The network with the shipped weights of a layer, and others."""
    own = {
        name.removeprefix(f"{layer}."): value.float()
        for name, value in read_weights(GENERATOR_WEIGHTS).items()
        if name.startswith(f"{layer}.")
    }
    fill_network_weights(
        network, own | extra_weights, GENERATOR_WEIGHTS, f"the generator of {layer}"
    )
    return network.eval().requires_grad_(False)


GENERATOR_LOADERS: dict[str, Callable[[], FeatureDecoder | CodeGenerator]] = {
    "relu4_2": load_feature_decoder,
    "penultimate": load_code_generator,
}


def map_generator_layers(model: Model) -> dict[str, str]:
    """The model's own names of the layers that have a generator, each with its name in LAYERS.

    Raises SightlineError for another network than the embedded one.
    """
    if model.recipe.get("sha256") != SOURCE_NETWORK_SHA256:
        raise SightlineError(
            f"the generator knows the features of sightnet with its embedded weights, not those of {model.name}"
        )
    return {model.layer(layer): layer for layer in GENERATOR_LOADERS}


def load_generator(model: Model, layer: str) -> FeatureDecoder | CodeGenerator:
    """The generator of a model's layer, on its device. Raises SightlineError if there is none."""
    found, name = map_generator_layers(model), model.layer(layer)
    if name not in found:
        raise SightlineError(f"{layer} has no generator; choose from {', '.join(found.values())}")
    return GENERATOR_LOADERS[found[name]]().to(model.device)
