"""Trains the code generator: `python training/composer.py --data DIR --out DIR`.

It predicts relu4_2's features of a photograph from its last features, N×256. The generator of an
image from a vector, after Dosovitskiy & Brox (2016, NIPS), is in two parts: this one decides where
things are; the decoder of `training/generator.py`, which must be in --out, how they look. It works
on features alone and costs little. The predicted features should be near the photograph's, lead to
the same last features, and pass for a photograph's with a discriminator that is given the last
features.

The features of six crops of each photograph are computed once and kept in the cache (1 GB). Every
batch is drawn from the seed and its own number, so that the same command resumes after a stop as if
there had been none.
"""

import argparse

import numpy as np
import torch
from adversarial import (
    AdversarialTraining,
    compute_relative_error,
    make_argument_parser,
    make_condition,
)
from generator import LAYER, SIDE, FrozenSightnet, pick_center_crops
from imagenette import Photos, random_crop, to_tensor
from journal import read_averaged_weights, run_script
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.generators.architectures.decoder import (
    FEATURE_CHANNELS,
    GRID_SIDE,
    HIDDEN_CHANNELS,
    CodeGenerator,
    FeatureDecoder,
)
from sightline.models.weights.checkpoint import fill_network_weights

CROPS_PER_PHOTO = 6

STATISTICS_CROPS = 2048


class FeatureDiscriminator(nn.Module):
    """Whether features of relu4_2 are a photograph's with these last features: 3×3 logits."""

    def __init__(self, decoder: FeatureDecoder) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.spectral_norm
        # In a list, so that it is no submodule: only its mean and deviation are used.
        self.decoder = [decoder]
        layers: list[nn.Module] = []
        channels = FEATURE_CHANNELS
        for stride in (1, 2, 1):
            layers.append(norm(nn.Conv2d(channels, HIDDEN_CHANNELS, 3, stride=stride, padding=1)))
            channels = HIDDEN_CHANNELS
        self.body = nn.ModuleList(layers)
        self.judge = norm(nn.Conv2d(HIDDEN_CHANNELS, 1, 1))
        self.condition = norm(nn.Linear(FEATURE_CHANNELS, HIDDEN_CHANNELS))

    def forward(self, features: Tensor, code: Tensor) -> Tensor:
        """Logits, N×9, by projection of the code (Miyato & Koyama 2018)."""
        x = (features - self.decoder[0].mean) / self.decoder[0].deviation
        for layer in self.body:
            x = F.leaky_relu(layer(x), 0.2)
        projection = (x * self.condition(code)[..., None, None]).sum(1)
        return (self.judge(x).squeeze(1) + projection).flatten(1)


def cache_features(
    extract: FrozenSightnet, photos: Photos, options: argparse.Namespace
) -> np.ndarray:
    """Features of relu4_2 of crops of every photograph, N×256×6×6 in half precision."""
    path = options.cache / "relu4_2.f16"
    shape = (CROPS_PER_PHOTO * len(photos), FEATURE_CHANNELS, GRID_SIDE, GRID_SIDE)
    if not path.exists():
        temporary = path.with_suffix(".new")
        features = np.memmap(temporary, np.float16, "w+", shape=shape)
        for first in range(0, len(features), 64):
            rng = np.random.default_rng([7, first])
            crops = [
                random_crop(photos[index // CROPS_PER_PHOTO][0], SIDE, rng, 0.4)
                for index in range(first, min(first + 64, len(features)))
            ]
            images = to_tensor(crops).contiguous(memory_format=torch.channels_last)
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
                features[first : first + 64] = extract(images)["relu4_2"].half().numpy()
        features.flush()
        temporary.rename(path)
    return np.memmap(path, np.float16, "r", shape=shape)


def initialize_composer(
    decoder: FeatureDecoder, extract: FrozenSightnet, features: np.ndarray
) -> CodeGenerator:
    """A code generator with weights drawn for leaky ReLU and the statistics of its input."""
    composer = CodeGenerator(decoder.requires_grad_(False))
    for module in (composer.places, composer.enter, composer.refine, composer.leave):
        nn.init.kaiming_normal_(module.weight, 0.3)
        nn.init.zeros_(module.bias)

    stride = len(features) // STATISTICS_CROPS
    sample = np.array(features[::stride][:STATISTICS_CROPS])
    with torch.no_grad():
        codes = torch.cat(
            [
                extract.continue_from_layer(torch.from_numpy(batch).float())
                for batch in np.split(sample, 32)
            ]
        )
    composer.mean = codes.mean(0, keepdim=True)
    composer.deviation = codes.std(0, keepdim=True).clamp_min(1e-3)
    return composer


def train(options: argparse.Namespace) -> None:
    torch.manual_seed(options.seed)
    extract = FrozenSightnet()
    photos = Photos(options.data / "imagenette160-train.tar", options.cache)
    features = cache_features(extract, photos, options)
    validation_photos = Photos(options.data / "imagenette160-val.tar", options.cache)
    validation_images = pick_center_crops(validation_photos, 256)
    decoder = FeatureDecoder().eval()
    decoder_path = options.out / f"{LAYER}.pt"
    decoder_weights = read_averaged_weights(decoder_path)
    fill_network_weights(decoder, decoder_weights, decoder_path, f"the generator of {LAYER}")
    composer = initialize_composer(decoder, extract, features)
    training = AdversarialTraining(
        composer,
        FeatureDiscriminator(decoder),
        "penultimate",
        options,
        discriminator_lr_share=0.5,
        adversarial_weight=options.adversarial,
    )
    training.resume()

    while training.step < options.steps:
        training.scale_learning_rates(min(1, (1 - training.step / options.steps) / 0.4))
        rng = np.random.default_rng([options.seed, training.step])
        indices = np.sort(rng.integers(0, len(features), options.batch))
        target = torch.from_numpy(features[indices]).float()
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            with torch.no_grad():
                code = extract.continue_from_layer(target).float()
            predicted = composer.predict_features(code).float()
            predicted_code = extract.continue_from_layer(predicted).float()
            losses = {
                "features": ((predicted - target) / decoder.deviation).square().mean(),
                "last": compute_relative_error(predicted_code, code),
                "adversarial": training.compute_adversarial_loss(
                    target, predicted, make_condition(code)
                ),
            }
        training.take_generator_step(losses)
        training.write_progress(extract, validation_images)


def main() -> None:
    parser = make_argument_parser(
        __doc__, steps=4000, batch=64, lr=1e-3, adversarial=0.2, every=500
    )
    train(parser.parse_args())


if __name__ == "__main__":
    run_script(main)
