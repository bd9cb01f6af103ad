"""Trains the decoder of relu4_2: `python training/generator.py --data DIR --out DIR`.

After Dosovitskiy & Brox (2016, NIPS), sized to two processor cores, on Imagenette. An image made
from the features of a photograph should have the photograph's features (in three middle layers and
in the layer that it was made from), its coarse colours, and pass for a photograph with a
discriminator that is given the last features. Every batch is drawn from the seed and its own
number, so that the same command resumes after a stop as if there had been none.
"""

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from adversarial import (
    AdversarialTraining,
    compute_relative_error,
    make_argument_parser,
    make_condition,
)
from average import round_significant_bits
from imagenette import Photos, center_crop, normalize, random_crop, to_tensor
from journal import read_averaged_weights, run_script
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

import sightline as sl
from sightline.generators.architectures.decoder import FeatureDecoder
from sightline.models.weights.checkpoint import hash_file

LAYER = "relu4_2"
SIDE = 96
STRIDE = 16  # of the deepest layer compared
COMPARED_LAYERS = ("relu2_2", "relu3_2", "relu4_2", "relu5_2")
STATISTICS_PHOTOS = 2048
ROUNDED_WEIGHT = "penultimate.places.weight"
ROUNDED_BITS = 9


class FrozenSightnet:
    """Features of `sightnet_plain`, whose weights are fixed."""

    def __init__(self) -> None:
        network = sl.load("sightnet_plain").network.float().eval().requires_grad_(False)
        self.body = network.to(memory_format=torch.channels_last)

    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        """Features by layer, N×C×h×w, and the last ones N×C as "penultimate"."""
        return self.run_layers(normalize(image), list(self.body.named_children()))

    def continue_from_layer(self, features: Tensor) -> Tensor:
        """The last features N×C that follow from those of relu4_2."""
        layers = list(self.body.named_children())
        names = [name for name, _ in layers]
        return self.run_layers(features, layers[names.index(LAYER) + 1 :])["penultimate"]

    def run_layers(self, x: Tensor, layers: list[tuple[str, nn.Module]]) -> dict[str, Tensor]:
        """The features of the compared layers and the last ones, up to the classifier."""
        features: dict[str, Tensor] = {}
        for name, module in layers:
            if name == "fc":
                return features | {"penultimate": x}
            # A ReLU in place would change features that are kept.
            x = F.relu(x) if isinstance(module, nn.ReLU) else module(x)
            if name in COMPARED_LAYERS:
                features[name] = x
        raise ValueError("no layer named fc")


class ImageDiscriminator(nn.Module):
    """Whether an image is a photograph with these last features: one logit for each patch."""

    def __init__(self, channels: int = 256) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.spectral_norm
        widths = (3, 32, 64, 96, 128)
        self.body = nn.ModuleList(
            norm(nn.Conv2d(width, next_width, 4, stride=2, padding=1))
            for width, next_width in pairwise(widths)
        )
        self.judge = norm(nn.Conv2d(widths[-1], 1, 1))
        self.condition = norm(nn.Linear(channels, widths[-1]))

    def forward(self, image: Tensor, code: Tensor) -> Tensor:
        """Logits, N×6×6, by projection of the code (Miyato & Koyama 2018)."""
        x = image * 2 - 1
        for layer in self.body:
            x = F.leaky_relu(layer(x), 0.2)
        projection = (x * self.condition(code)[..., None, None]).mean(1)
        return self.judge(x).squeeze(1) + projection


def compute_coarse_loss(generated: Tensor, image: Tensor) -> Tensor:
    """Mean squared error at full size and at a 4th, 12th and 24th of it, averaged.

    It compares colours and rough shapes before outlines.
    """
    losses = [
        F.mse_loss(F.avg_pool2d(generated, size), F.avg_pool2d(image, size))
        for size in (1, 4, 12, 24)
    ]
    return torch.stack(losses).mean()


def draw_batch(photos: Photos, step: int, options: argparse.Namespace) -> Tensor:
    """The images of one step, the same in every run with this seed."""
    rng = np.random.default_rng([options.seed, step])
    indices = rng.integers(0, len(photos), options.batch)
    crops = [random_crop(photos[int(index)][0], SIDE, rng, 0.4) for index in indices]
    return to_tensor(crops).contiguous(memory_format=torch.channels_last)


def pick_center_crops(photos: Photos, count: int) -> Tensor:
    """Centre crops of `count` photographs, evenly spread over all."""
    indices = np.linspace(0, len(photos) - 1, count).astype(int)
    return to_tensor([center_crop(photos[int(index)][0], SIDE) for index in indices])


@torch.no_grad()
def measure_feature_statistics(extract: FrozenSightnet, photos: Photos) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel over training photographs, 1×C×1×1 each."""
    batches = pick_center_crops(photos, STATISTICS_PHOTOS).split(64)
    features = torch.cat([extract(images)[LAYER].flatten(2) for images in batches])
    values = features.transpose(0, 1).flatten(1)
    mean = values.mean(1)
    deviation = values.std(1).clamp_min(1e-3)
    return mean.view(1, -1, 1, 1), deviation.view(1, -1, 1, 1)


def compute_feature_losses(
    generated: Tensor,
    image: Tensor,
    extract: FrozenSightnet,
    options: argparse.Namespace,
    step: int,
) -> dict[str, Tensor]:
    """Relative errors of the features of the compared layers and of the layer decoded.

    The images are seen through a window that moves from step to step. Seen always at the same
    positions, the strides of the network would leave their lattice in the images.
    """
    top, left = np.random.default_rng([options.seed, step, 1]).integers(0, STRIDE, 2)
    window = (..., slice(top, top + SIDE - STRIDE), slice(left, left + SIDE - STRIDE))
    with torch.no_grad():
        target = {name: value.float() for name, value in extract(image[window]).items()}
    features = extract(generated[window])
    errors = {
        name: compute_relative_error(features[name].float(), target[name])
        for name in COMPARED_LAYERS
    }
    return {
        "feature": options.feature * sum(errors.values()) / len(COMPARED_LAYERS),
        "code": options.code * errors[LAYER],
    }


def initialize_decoder(decoder: FeatureDecoder) -> FeatureDecoder:
    """Draws weights that preserve the scale of signals through the layers (He 2015).

    torch's default initialization leaves a gray image.
    """
    for module in decoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, 0.3)
            nn.init.zeros_(module.bias)
    for refine in decoder.refine:
        refine.weight.data *= 0.5
    return decoder


def train(options: argparse.Namespace) -> None:
    torch.manual_seed(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    extract = FrozenSightnet()
    photos = Photos(options.data / "imagenette160-train.tar", options.cache)
    validation_photos = Photos(options.data / "imagenette160-val.tar", options.cache)
    validation_images = pick_center_crops(validation_photos, 256)
    decoder = initialize_decoder(FeatureDecoder()).to(memory_format=torch.channels_last)
    discriminator = ImageDiscriminator().to(memory_format=torch.channels_last)
    training = AdversarialTraining(
        decoder,
        discriminator,
        LAYER,
        options,
        discriminator_lr_share=0.2,
        adversarial_weight=options.adversarial,
    )
    if not training.resume():
        mean, deviation = measure_feature_statistics(extract, photos)
        for network in (decoder, training.average.module):
            network.mean = mean.clone()
            network.deviation = deviation.clone()

    while training.step < options.steps:
        decay = (1 - training.step / options.steps) / 0.4
        warmup = (training.step + 1) / 100
        training.scale_learning_rates(min(1, decay, warmup))
        image = draw_batch(photos, training.step, options)
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            losses = compute_losses(training, extract, image, options)
        training.take_generator_step(losses)
        training.write_progress(extract, validation_images)


def compute_losses(
    training: AdversarialTraining,
    extract: FrozenSightnet,
    image: Tensor,
    options: argparse.Namespace,
) -> dict[str, Tensor]:
    """The decoder's weighted losses by name; takes a step of the discriminator.

    In the first steps only colours and rough shapes count; outlines would drown them.
    """
    with torch.no_grad():
        features = {name: value.float() for name, value in extract(image).items()}
    generated = training.generator(features[LAYER]).float()
    coarse_loss = compute_coarse_loss(generated, image)
    pixel_loss = F.l1_loss(generated, image)
    losses = {"image": options.image * coarse_loss + options.pixel * pixel_loss}

    step = training.step
    if step >= options.warm:
        losses |= compute_feature_losses(generated, image, extract, options, step)
        condition = make_condition(features["penultimate"])
        adversarial_loss = training.compute_adversarial_loss(image, generated, condition)
        losses["adversarial"] = adversarial_loss * min(1, (step - options.warm) / 500)
    return losses


def export(folder: Path, path: Path) -> None:
    """Writes the averaged weights of decoder and composer, each name under its layer.

    The largest one is rounded, which is not to be seen and saves a tenth of it in the wheel.
    """
    tensors: dict[str, Tensor] = {}
    for layer in (LAYER, "penultimate"):
        for name, value in read_averaged_weights(folder / f"{layer}.pt").items():
            # The composer holds the decoder, too.
            if not name.startswith("decoder."):
                tensors[f"{layer}.{name}"] = value.half().contiguous()
    rounded = round_significant_bits(tensors[ROUNDED_WEIGHT].float(), ROUNDED_BITS)
    tensors[ROUNDED_WEIGHT] = rounded.half()
    save_file(tensors, path)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, sha256 {hash_file(path)}")


def main() -> None:
    parser = make_argument_parser(
        __doc__, steps=12_000, batch=16, lr=1.5e-3, adversarial=0.05, every=250
    )
    parser.add_argument(
        "--feature", type=float, default=0.5, help="weight of the features of all compared layers"
    )
    parser.add_argument(
        "--code", type=float, default=0.5, help="weight of the features that are decoded"
    )
    parser.add_argument("--image", type=float, default=20.0, help="weight of the coarse image")
    parser.add_argument("--pixel", type=float, default=0.5, help="weight of the pixels")
    parser.add_argument(
        "--warm", type=int, default=1500, help="first steps, on colours and rough shapes alone"
    )
    parser.add_argument(
        "--export",
        type=Path,
        help="writes the weights of decoder and composer to this file instead of training",
    )
    options = parser.parse_args()
    if options.export:
        export(options.out, options.export)
    else:
        train(options)


if __name__ == "__main__":
    run_script(main)
