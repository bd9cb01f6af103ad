"""Trains the decoder of the embedded network's relu4_2 on Imagenette: `python training/generator.py --data DIR --out DIR`.

After Dosovitskiy & Brox (2016, NIPS), sized to two processor cores. A picture made from the features of a photograph should
have the photograph's features (in three middle layers and in the layer it was made from), its coarse colours, and be taken
for a photograph by a discriminator that is told the features. Every batch is drawn from the seed and its own number, so the
same command goes on after a stop as if there had been none.
"""

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from contest import Contest, arguments, averaged, relative, told
from imagenette import Photos, center_crop, normalize, random_crop, to_tensor
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

import sightline as sl
from sightline.generators.architectures.decoder import FeatureDecoder
from sightline.models.weights.checkpoint import hash_file

LAYER = "relu4_2"
SIDE = 96
STRIDE = 16  # of the deepest layer compared
COMPARED = ("relu2_2", "relu3_2", "relu4_2", "relu5_2")


class Comparator:
    """The embedded network's features of pictures, its weights untouched."""

    def __init__(self) -> None:
        self.body = (
            sl.load()
            .network.float()
            .eval()
            .requires_grad_(False)
            .to(memory_format=torch.channels_last)
        )

    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        """Features by layer, N×C×h×w (penultimate: N×C)."""
        return self.passed(normalize(image))

    def after(self, features: Tensor) -> Tensor:
        """The last features N×C that follow from those of relu4_2."""
        return self.passed(features, LAYER)["penultimate"]

    def passed(self, x: Tensor, behind: str | None = None) -> dict[str, Tensor]:
        found, begun = dict[str, Tensor](), behind is None
        for name, module in self.body.named_children():
            if name == "fc":
                return found | {"penultimate": x}
            if begun:
                x = F.relu(x) if isinstance(module, nn.ReLU) else module(x)
            if begun and name in COMPARED:
                found[name] = x
            begun = begun or name == behind
        raise ValueError("no layer named fc")


class Discriminator(nn.Module):
    """Whether a picture is a photograph with these features: one logit for each patch of it."""

    def __init__(self, channels: int = 256) -> None:
        super().__init__()
        widths = (3, 32, 64, 96, 128)
        self.body = nn.ModuleList(
            nn.utils.parametrizations.spectral_norm(
                nn.Conv2d(before, after, 4, stride=2, padding=1)
            )
            for before, after in pairwise(widths)
        )
        self.judge = nn.utils.parametrizations.spectral_norm(nn.Conv2d(widths[-1], 1, 1))
        self.told = nn.utils.parametrizations.spectral_norm(nn.Linear(channels, widths[-1]))

    def forward(self, image: Tensor, code: Tensor) -> Tensor:
        """Logits, N×6×6, by projection of the features (Miyato & Koyama 2018)."""
        x = image * 2 - 1
        for layer in self.body:
            x = F.leaky_relu(layer(x), 0.2)
        return self.judge(x).squeeze(1) + (x * self.told(code)[..., None, None]).mean(1)


def coarse(made: Tensor, image: Tensor) -> Tensor:
    """How far two pictures differ at their own size and at a 4th, 12th and 24th of it: in colours and rough shapes before outlines."""
    return torch.stack(
        [F.mse_loss(F.avg_pool2d(made, size), F.avg_pool2d(image, size)) for size in (1, 4, 12, 24)]
    ).mean()


def batch_of(photos: Photos, step: int, options: argparse.Namespace) -> Tensor:
    """The images of one step, the same in every run with this seed."""
    rng = np.random.default_rng([options.seed, step])
    chosen = rng.integers(0, len(photos), options.batch)
    return to_tensor([random_crop(photos[int(i)][0], SIDE, rng, 0.4) for i in chosen]).contiguous(
        memory_format=torch.channels_last
    )


def held_out(photos: Photos, count: int) -> Tensor:
    """Every n-th validation photograph, centre crop."""
    return to_tensor(
        [
            center_crop(photos[int(i)][0], SIDE)
            for i in np.linspace(0, len(photos) - 1, count).astype(int)
        ]
    )


@torch.no_grad()
def statistics(compare: Comparator, photos: Photos) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel over 2,048 training photographs."""
    flat = (
        torch.cat([compare(image)[LAYER].flatten(2) for image in held_out(photos, 2048).split(64)])
        .transpose(0, 1)
        .flatten(1)
    )
    return flat.mean(1).view(1, -1, 1, 1), flat.std(1).clamp_min(1e-3).view(1, -1, 1, 1)


def lacking(
    made: Tensor, image: Tensor, compare: Comparator, options: argparse.Namespace, step: int
) -> dict[str, Tensor]:
    """What the pictures lack in features, seen through a window that is elsewhere in each step: seen always at the same places, the
    strides of the network would leave their lattice in the pictures."""
    top, left = np.random.default_rng([options.seed, step, 1]).integers(0, STRIDE, 2)
    made, image = (
        value[..., top : top + SIDE - STRIDE, left : left + SIDE - STRIDE]
        for value in (made, image)
    )
    with torch.no_grad():
        wanted = {name: value.float() for name, value in compare(image).items()}
    found = compare(made)
    return {
        "feature": options.feature
        * sum(relative(found[name].float(), wanted[name]) for name in COMPARED)
        / len(COMPARED),
        "code": options.code * relative(found[LAYER].float(), wanted[LAYER]),
    }


def started(decoder: FeatureDecoder) -> FeatureDecoder:
    """With weights drawn so that signals keep their strength through the layers (He 2015); torch's own draw leaves a gray picture."""
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
    compare, photos = Comparator(), Photos(options.data / "imagenette160-train.tar", options.cache)
    validation = held_out(Photos(options.data / "imagenette160-val.tar", options.cache), 256)
    decoder, judge = (
        net.to(memory_format=torch.channels_last)
        for net in (started(FeatureDecoder()), Discriminator())
    )
    contest = Contest(decoder, judge, LAYER, options, share=0.2, weight=options.adversarial)
    if not contest.resume():
        for network in (decoder, contest.average.module):
            network.mean, network.deviation = (
                value.clone() for value in statistics(compare, photos)
            )
    while (step := contest.step) < options.steps:
        contest.pace(min(1, (1 - step / options.steps) / 0.4, (step + 1) / 100))
        image = batch_of(photos, step, options)
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            with torch.no_grad():
                wanted = {name: value.float() for name, value in compare(image).items()}
            made = decoder(wanted[LAYER]).float()
            losses = {
                "image": options.image * coarse(made, image)
                + options.pixel * F.l1_loss(made, image)
            }
            if (
                step >= options.warm
            ):  # until then colours and rough shapes, which outlines would drown
                losses |= lacking(made, image, compare, options, step)
                losses["adversarial"] = contest.told_apart(
                    image, made, told(wanted["penultimate"])
                ) * min(1, (step - options.warm) / 500)
        contest.descend(losses)
        contest.keep(compare, validation)


def export(folder: Path, out: Path) -> None:
    """The averaged weights of decoder and composer in one half-precision file, each name under its layer."""
    tensors = {}
    for layer in (LAYER, "penultimate"):
        own = {
            name: value
            for name, value in averaged(folder, layer).items()
            if not name.startswith("decoder.")
        }
        tensors |= {f"{layer}.{name}": value.half().contiguous() for name, value in own.items()}
    save_file(tensors, out)
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB, sha256 {hash_file(out)}")


def main() -> None:
    parser = arguments(__doc__, steps=12_000, batch=16, lr=1.5e-3, adversarial=0.05, every=250)
    parser.add_argument(
        "--feature", type=float, default=0.5, help="weight of the features of the layers between"
    )
    parser.add_argument("--code", type=float, default=0.5, help="weight of the features made from")
    parser.add_argument("--image", type=float, default=20.0, help="weight of the coarse picture")
    parser.add_argument("--pixel", type=float, default=0.5, help="weight of the pixels")
    parser.add_argument(
        "--warm", type=int, default=1500, help="steps on colours and rough shapes alone, at first"
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
    main()
