"""Up-convolutional networks from features to images in one pass (Dosovitskiy & Brox 2016).

They were trained on `sightnet_plain` alone, by `training/generator.py` and
`training/composer.py`. They serve learned inversion, and synthesis that optimizes a generator's
code (Nguyen 2016), whose images may be shown to any network.
"""

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.errors import SightlineError
from sightline.images.io.library import ASSETS_FOLDER
from sightline.models.model import Model
from sightline.models.weights.checkpoint import fill_network_weights, read_weights

# Of relu4_2 and of the last features.
FEATURE_CHANNELS = 256

# Channels of the decoder at the features' size and after each doubling of it.
DECODER_WIDTHS = (136, 112, 64, 32, 16)

# Channels between the convolutions of the code generator.
HIDDEN_CHANNELS = 192

# A code is first spread over a grid of GRID_SIDE² positions with GRID_CHANNELS channels each.
GRID_SIDE = 6
GRID_CHANNELS = 48

# Inputs are clamped to this many standard deviations: some features are rarely active, and then far
# from the mean.
CLIP_DEVIATIONS = 4.0

LEAKY_SLOPE = 0.3

GENERATOR_WEIGHTS = ASSETS_FOLDER / "generator.safetensors"

# Of the weights of the network whose features the generators were trained on.
SOURCE_NETWORK_SHA256 = "9ae86273697621ccddc40772223ea81a8d9a3c5da0146c95851691b53efb9b17"

NetworkT = TypeVar("NetworkT", bound=nn.Module)


class FeatureDecoder(nn.Module):
    """Turns features of relu4_2, N×256×h×w, into images N×3×16h×16w in [0, 1].

    `mean` and `deviation`, 1×256×1×1, are those of the features over the training images; the input
    is standardized by them.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, FEATURE_CHANNELS, 1, 1))
        self.register_buffer("deviation", torch.ones(1, FEATURE_CHANNELS, 1, 1))
        self.enter = nn.Conv2d(FEATURE_CHANNELS, DECODER_WIDTHS[0], 3, padding=1)
        self.up = nn.ModuleList(
            nn.Conv2d(width, next_width, 3, padding=1)
            for width, next_width in pairwise(DECODER_WIDTHS)
        )
        self.refine = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1) for width in DECODER_WIDTHS[:3]
        )
        self.paint = nn.Conv2d(DECODER_WIDTHS[-1], 3, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        standardized = standardize_and_clip(features, self.mean, self.deviation)
        x = self.enter(standardized)
        for index, widen in enumerate(self.up):
            x = activate_and_normalize(x)
            if index < len(self.refine):
                x = x + activate_and_normalize(self.refine[index](x))
            # Enlarged first, then convolved: transposed convolutions leave a checkerboard.
            x = widen(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.paint(activate_and_normalize(x)).sigmoid()


class CodeGenerator(nn.Module):
    """Turns codes, the last features N×256, into images N×3×96×96 in [0, 1].

    It predicts features of relu4_2, which `decoder` turns into images. `mean` and `deviation`,
    1×256, are those of the last features over the training images; mean + 3·deviation bounds the
    codes of an ascent (Nguyen 2016).
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, decoder: FeatureDecoder) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, FEATURE_CHANNELS))
        self.register_buffer("deviation", torch.ones(1, FEATURE_CHANNELS))
        # The names of the layers are those in the file of weights.
        self.places = nn.Linear(FEATURE_CHANNELS, GRID_CHANNELS * GRID_SIDE**2)
        self.enter = nn.Conv2d(GRID_CHANNELS, HIDDEN_CHANNELS, 3, padding=1)
        self.refine = nn.Conv2d(HIDDEN_CHANNELS, HIDDEN_CHANNELS, 3, padding=1)
        self.leave = nn.Conv2d(HIDDEN_CHANNELS, FEATURE_CHANNELS, 3, padding=1)
        self.decoder = decoder

    def predict_features(self, code: Tensor) -> Tensor:
        """Features of relu4_2, N×256×6×6, predicted from codes N×256."""
        standardized = standardize_and_clip(code, self.mean, self.deviation)
        x = self.places(standardized)
        x = x.unflatten(1, (GRID_CHANNELS, GRID_SIDE, GRID_SIDE))

        x = self.enter(activate_and_normalize(x))
        x = x + self.refine(activate_and_normalize(x))
        x = self.leave(activate_and_normalize(x))

        return (self.decoder.mean + self.decoder.deviation * x).relu()

    def forward(self, code: Tensor) -> Tensor:
        return self.decoder(self.predict_features(code))


def standardize_and_clip(features: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Features in standard deviations from the mean, clamped to `CLIP_DEVIATIONS`."""
    return ((features - mean) / deviation).clamp(-CLIP_DEVIATIONS, CLIP_DEVIATIONS)


def activate_and_normalize(x: Tensor) -> Tensor:
    """Leaky ReLU (Dosovitskiy & Brox 2016), then pixel norm (Karras 2018).

    Pixel norm scales each position to a mean square of 1 over channels. It keeps training steady
    without statistics of the batch.
    """
    x = F.leaky_relu(x, LEAKY_SLOPE)
    return x * (x.square().mean(1, keepdim=True) + 1e-6).rsqrt()


# ── shipped weights ──


@cache
def load_feature_decoder() -> FeatureDecoder:
    """The trained decoder of relu4_2."""
    return load_generator_weights(FeatureDecoder(), {}, "relu4_2")


@cache
def load_code_generator() -> CodeGenerator:
    """The trained generator of the last features."""
    decoder = load_feature_decoder()
    decoder_weights = {f"decoder.{name}": value for name, value in decoder.state_dict().items()}
    return load_generator_weights(CodeGenerator(decoder), decoder_weights, "penultimate")


def load_generator_weights(
    network: NetworkT, extra_weights: dict[str, Tensor], layer: str
) -> NetworkT:
    """Fills a network with a layer's shipped weights and `extra_weights`, and freezes it."""
    prefix = f"{layer}."
    weights = {
        name.removeprefix(prefix): value.float()
        for name, value in read_weights(GENERATOR_WEIGHTS).items()
        if name.startswith(prefix)
    }
    weights |= extra_weights
    fill_network_weights(network, weights, GENERATOR_WEIGHTS, f"the generator of {layer}")
    return network.eval().requires_grad_(False)


GENERATOR_LOADERS: dict[str, Callable[[], FeatureDecoder | CodeGenerator]] = {
    "relu4_2": load_feature_decoder,
    "penultimate": load_code_generator,
}


def map_generator_layers(model: Model) -> dict[str, str]:
    """The layers with a generator: the model's own name of each, and its `GENERATOR_LOADERS` key.

    Raises SightlineError for another network than `sightnet_plain`.
    """
    if model.recipe.get("sha256") != SOURCE_NETWORK_SHA256:
        raise SightlineError(
            "the generator was trained on the features of sightnet_plain with its embedded weights,"
            f" not on those of {model.name}"
        )
    return {model.layer(layer): layer for layer in GENERATOR_LOADERS}


def load_generator(model: Model, layer: str) -> FeatureDecoder | CodeGenerator:
    """The generator of a model's layer, on the model's device.

    Raises SightlineError if the layer has none.
    """
    generator_layers = map_generator_layers(model)
    name = model.layer(layer)
    if name not in generator_layers:
        choices = ", ".join(generator_layers.values())
        raise SightlineError(f"{layer} has no generator; choose from {choices}")
    load = GENERATOR_LOADERS[generator_layers[name]]
    return load().to(model.device)
