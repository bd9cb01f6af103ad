"""Trains the composer, which makes relu4_2's features of a photograph from its last ones: `python training/composer.py --data DIR --out DIR`.

The generator of a vector, after Dosovitskiy & Brox (2016, NIPS), in two parts: this one knows where things are, the decoder of
`training/generator.py`, which it needs in --out, how they look. It works on features alone and costs little: they should be near the
photograph's, lead to the same last features, and be taken for a photograph's by a discriminator that is told those. The features of six
crops of each photograph are computed once and kept in the cache (1 GB). Every batch is drawn from the seed and its own number, so the same
command goes on after a stop as if there had been none.
"""

import argparse

import numpy as np
import torch
from contest import Contest, arguments, averaged, relative, told
from generator import LAYER, SIDE, Comparator, held_out
from imagenette import Photos, random_crop, to_tensor
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.generators.architectures.decoder import (
    FEATURE_CHANNELS,
    GRID_SIDE,
    HIDDEN_CHANNELS,
    CodeGenerator,
    FeatureDecoder,
)

CROPS = 6


class Judge(nn.Module):
    """Whether features of relu4_2 are a photograph's with these last features: one logit for each of 3×3 places."""

    def __init__(self, decoder: FeatureDecoder) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.spectral_norm
        self.decoder = [decoder]  # not its own: only for mean and deviation
        self.body = nn.ModuleList(
            norm(
                nn.Conv2d(
                    FEATURE_CHANNELS if first else HIDDEN_CHANNELS,
                    HIDDEN_CHANNELS,
                    3,
                    stride=stride,
                    padding=1,
                )
            )
            for first, stride in ((1, 1), (0, 2), (0, 1))
        )
        self.judge, self.told = (
            norm(nn.Conv2d(HIDDEN_CHANNELS, 1, 1)),
            norm(nn.Linear(FEATURE_CHANNELS, HIDDEN_CHANNELS)),
        )

    def forward(self, features: Tensor, code: Tensor) -> Tensor:
        """Logits, N×9, by projection (Miyato & Koyama 2018)."""
        x = (features - self.decoder[0].mean) / self.decoder[0].deviation
        for layer in self.body:
            x = F.leaky_relu(layer(x), 0.2)
        return (self.judge(x).squeeze(1) + (x * self.told(code)[..., None, None]).sum(1)).flatten(1)


def remembered(compare: Comparator, photos: Photos, options: argparse.Namespace) -> np.ndarray:
    """Features of crops of every photograph, half precision, N×256×6×6; computed once."""
    path, shape = (
        options.cache / "relu4_2.f16",
        (CROPS * len(photos), FEATURE_CHANNELS, GRID_SIDE, GRID_SIDE),
    )
    if not path.exists():
        new = np.memmap(path.with_suffix(".new"), np.float16, "w+", shape=shape)
        for first in range(0, len(new), 64):
            rng = np.random.default_rng([7, first])
            crops = [
                random_crop(photos[i // CROPS][0], SIDE, rng, 0.4)
                for i in range(first, min(first + 64, len(new)))
            ]
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
                new[first : first + 64] = (
                    compare(to_tensor(crops).contiguous(memory_format=torch.channels_last))[
                        "relu4_2"
                    ]
                    .half()
                    .numpy()
                )
        new.flush()
        path.with_suffix(".new").rename(path)
    return np.memmap(path, np.float16, "r", shape=shape)


def started(decoder: FeatureDecoder, compare: Comparator, features: np.ndarray) -> CodeGenerator:
    """A composer with weights drawn for leaky ReLU, and the statistics of the last features over 2,048 crops."""
    composer = CodeGenerator(decoder.requires_grad_(False))
    for module in (composer.places, composer.enter, composer.refine, composer.leave):
        nn.init.kaiming_normal_(module.weight, 0.3)
        nn.init.zeros_(module.bias)
    chosen = np.array(features[:: len(features) // 2048][:2048])
    with torch.no_grad():
        last = torch.cat(
            [compare.after(torch.from_numpy(part).float()) for part in np.split(chosen, 32)]
        )
    composer.mean, composer.deviation = (
        last.mean(0, keepdim=True),
        last.std(0, keepdim=True).clamp_min(1e-3),
    )
    return composer


def train(options: argparse.Namespace) -> None:
    torch.manual_seed(options.seed)
    compare, photos = Comparator(), Photos(options.data / "imagenette160-train.tar", options.cache)
    features = remembered(compare, photos, options)
    validation = held_out(Photos(options.data / "imagenette160-val.tar", options.cache), 256)
    decoder = FeatureDecoder().eval()
    decoder.load_state_dict(averaged(options.out, LAYER))
    composer = started(decoder, compare, features)
    contest = Contest(
        composer, Judge(decoder), "penultimate", options, share=0.5, weight=options.adversarial
    )
    contest.resume()
    while (step := contest.step) < options.steps:
        contest.pace(min(1, (1 - step / options.steps) / 0.4))
        chosen = np.sort(
            np.random.default_rng([options.seed, step]).integers(0, len(features), options.batch)
        )
        wanted = torch.from_numpy(features[chosen]).float()
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            with torch.no_grad():
                last = compare.after(wanted).float()
            made = composer.predict_features(last).float()
            losses = {
                "features": ((made - wanted) / decoder.deviation).square().mean(),
                "last": relative(compare.after(made).float(), last),
                "adversarial": contest.told_apart(wanted, made, told(last)),
            }
        contest.descend(losses)
        contest.keep(compare, validation)


def main() -> None:
    train(
        arguments(__doc__, steps=4000, batch=64, lr=1e-3, adversarial=0.2, every=500).parse_args()
    )


if __name__ == "__main__":
    main()
