"""Trains the decoder of the embedded network's relu4_2 on Imagenette: `python training/generator.py --data DIR --out DIR`.

After Dosovitskiy & Brox (2016, NIPS), sized to two processor cores. A picture made from the features of a photograph should
have the photograph's features (in three middle layers and in the layer it was made from), its coarse colours, and be taken
for a photograph by a discriminator that is told the features. Every batch is drawn from the seed and its own number, so the
same command goes on after a stop as if there had been none.
"""

import argparse
import json
import os
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from imagenette import Photos, center_crop, normalize, random_crop, to_tensor
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

import sightline as sl
from sightline.networks.decoder import Composer, Decoder
from sightline.weights import file_digest

LAYER = "relu4_2"
SIDE = 96
STRIDE = 16  # of the deepest layer compared
COMPARED = ("relu2_2", "relu3_2", "relu4_2", "relu5_2")


class Comparator:
    """The embedded network's features of pictures, its weights untouched."""

    def __init__(self) -> None:
        self.body = sl.load().body.float().eval().requires_grad_(False).to(memory_format=torch.channels_last)

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
            nn.utils.parametrizations.spectral_norm(nn.Conv2d(before, after, 4, stride=2, padding=1)) for before, after in pairwise(widths)
        )
        self.judge = nn.utils.parametrizations.spectral_norm(nn.Conv2d(widths[-1], 1, 1))
        self.told = nn.utils.parametrizations.spectral_norm(nn.Linear(channels, widths[-1]))

    def forward(self, image: Tensor, code: Tensor) -> Tensor:
        """Logits, N×6×6, by projection of the features (Miyato & Koyama 2018)."""
        x = image * 2 - 1
        for layer in self.body:
            x = F.leaky_relu(layer(x), 0.2)
        return self.judge(x).squeeze(1) + (x * self.told(code)[..., None, None]).mean(1)


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """What a discriminator goes down."""
    return (F.relu(1 - real) + F.relu(1 + fake)).mean()


def told(last: Tensor) -> Tensor:
    """The last features as a discriminator is told them: of length 1."""
    return F.layer_norm(last, last.shape[1:]) / 16


def relative(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean over the batch of ‖found − wanted‖² / mean ‖wanted‖²."""
    return (found - wanted).square().mean() / wanted.square().mean()


def coarse(made: Tensor, image: Tensor) -> Tensor:
    """How far two pictures differ at their own size and at a 4th, 12th and 24th of it: in colours and rough shapes before outlines."""
    return torch.stack([F.mse_loss(F.avg_pool2d(made, size), F.avg_pool2d(image, size)) for size in (1, 4, 12, 24)]).mean()


def batch_of(photos: Photos, step: int, options: argparse.Namespace) -> Tensor:
    """The images of one step, the same in every run with this seed."""
    rng = np.random.default_rng([options.seed, step])
    chosen = rng.integers(0, len(photos), options.batch)
    return to_tensor([random_crop(photos[int(i)][0], SIDE, rng, 0.4) for i in chosen]).contiguous(memory_format=torch.channels_last)


def held_out(photos: Photos, count: int) -> Tensor:
    """Every n-th validation photograph, centre crop."""
    return to_tensor([center_crop(photos[int(i)][0], SIDE) for i in np.linspace(0, len(photos) - 1, count).astype(int)])


@torch.no_grad()
def statistics(compare: Comparator, photos: Photos) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel over 2,048 training photographs."""
    flat = torch.cat([compare(image)[LAYER].flatten(2) for image in held_out(photos, 2048).split(64)]).transpose(0, 1).flatten(1)
    return flat.mean(1).view(1, -1, 1, 1), flat.std(1).clamp_min(1e-3).view(1, -1, 1, 1)


@torch.no_grad()
def measured(decoder: Decoder | Composer, compare: Comparator, image: Tensor, layer: str) -> dict[str, float]:
    """On photographs held out: relative error of the features made from, PSNR, and how often both get the same answer."""
    wanted = [compare(part) for part in image.split(64)]
    made = torch.cat([decoder(part[layer]) for part in wanted])
    found = [compare(part) for part in made.split(64)]
    a, b = (torch.cat([part[layer].flatten(1) for part in parts]) for parts in (wanted, found))
    head = compare.body.get_submodule("fc")
    same = torch.cat([head(x["penultimate"]).argmax(1) == head(y["penultimate"]).argmax(1) for x, y in zip(wanted, found, strict=True)])
    return {
        "feature_error": float(((a - b).norm(dim=1) / a.norm(dim=1)).mean()),
        "psnr": float((-10 * (made - image).square().flatten(1).mean(1).log10()).mean()),
        "same_class": float(same.float().mean()),
    }


def sheet(decoder: Decoder | Composer, compare: Comparator, image: Tensor, layer: str, path: Path) -> None:
    """Photographs above, what is made of their features below."""
    with torch.no_grad():
        made = decoder(compare(image)[layer])
    rows = torch.cat([torch.cat(list(part), 2) for part in (image, made)], 1)
    Image.fromarray(rows.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()).save(path)


def lacking(made: Tensor, image: Tensor, compare: Comparator, options: argparse.Namespace, step: int) -> dict[str, Tensor]:
    """What the pictures lack in features, seen through a window that is elsewhere in each step: seen always at the same places, the
    strides of the network would leave their lattice in the pictures."""
    top, left = np.random.default_rng([options.seed, step, 1]).integers(0, STRIDE, 2)
    made, image = (value[..., top : top + SIDE - STRIDE, left : left + SIDE - STRIDE] for value in (made, image))
    with torch.no_grad():
        wanted = {name: value.float() for name, value in compare(image).items()}
    found = compare(made)
    return {
        "feature": options.feature * sum(relative(found[name].float(), wanted[name]) for name in COMPARED) / len(COMPARED),
        "code": options.code * relative(found[LAYER].float(), wanted[LAYER]),
    }


def started(decoder: Decoder) -> Decoder:
    """With weights drawn so that signals keep their strength through the layers (He 2015); torch's own draw leaves a gray picture."""
    for module in decoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, 0.3)
            nn.init.zeros_(module.bias)
    for refine in decoder.refine:
        refine.weight.data *= 0.5
    return decoder


def moving(average: Tensor, latest: Tensor, count: Tensor | int) -> Tensor:
    """The average of the weights over about the last 500 steps; over fewer at the beginning."""
    return average + (latest - average) * max(0.002, 2 / (10 + float(count)))


def train(options: argparse.Namespace) -> None:
    torch.manual_seed(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    compare, photos = Comparator(), Photos(options.data / "imagenette160-train.tar", options.cache)
    validation = held_out(Photos(options.data / "imagenette160-val.tar", options.cache), 256)
    decoder, judge = (net.to(memory_format=torch.channels_last) for net in (started(Decoder()), Discriminator()))
    average = torch.optim.swa_utils.AveragedModel(decoder, avg_fn=moving)
    makers = torch.optim.Adam(decoder.parameters(), lr=options.lr, betas=(0.5, 0.99))
    judges = torch.optim.Adam(judge.parameters(), lr=options.lr, betas=(0.0, 0.99))
    parts = {"decoder": decoder, "judge": judge, "average": average, "makers": makers, "judges": judges}
    checkpoint, first = options.out / f"{LAYER}.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        first = state["step"]
    else:
        for network in (decoder, average.module):
            network.mean, network.deviation = (value.clone() for value in statistics(compare, photos))
    began, sums = time.time(), dict[str, float]()
    for step in range(first, options.steps):
        rest = 1 - step / options.steps
        for optimizer, share in ((makers, 1), (judges, 0.2)):
            optimizer.param_groups[0]["lr"] = share * options.lr * min(1, rest / 0.4, (step + 1) / 100)
        image = batch_of(photos, step, options)
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            with torch.no_grad():
                wanted = {name: value.float() for name, value in compare(image).items()}
            code = told(wanted["penultimate"])
            made = decoder(wanted[LAYER]).float()
            loss = {"image": options.image * coarse(made, image) + options.pixel * F.l1_loss(made, image)}
            if step >= options.warm:  # until then colours and rough shapes, which outlines would drown
                real, fake = judge(image, code).float(), judge(made.detach(), code).float()
                hinge(real, fake).backward()
                judges.step()
                judges.zero_grad()
                loss |= lacking(made, image, compare, options, step)
                loss["adversarial"] = -options.adversarial * judge(made, code).float().mean() * min(1, (step - options.warm) / 500)
        sum(loss.values()).backward()
        makers.step()
        makers.zero_grad()
        judges.zero_grad()
        average.update_parameters(decoder)
        for name, value in loss.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach()) / options.every
        if (step + 1) % options.every == 0 or step + 1 == options.steps:
            row = {"step": step + 1, **sums, **measured(average.module, compare, validation, LAYER), "seconds": time.time() - began}
            save({name: part.state_dict() for name, part in parts.items()} | {"step": step + 1}, checkpoint)
            sheet(average.module, compare, validation[::16], LAYER, options.out / f"{LAYER}-{step + 1:06}.png")
            with (options.out / f"{LAYER}.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            print({name: round(value, 4) for name, value in row.items()}, flush=True)
            began, sums = time.time(), {}


def save(state: dict[str, object], path: Path) -> None:
    """Writes a checkpoint whole or not at all."""
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def parts_of(average: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of an averaged network under their own names."""
    return {name.removeprefix("module."): value for name, value in average.items() if name.startswith("module.")}


def export(folder: Path, out: Path) -> None:
    """The averaged weights of decoder and composer in one half-precision file, each name under its layer."""
    tensors = {}
    for layer in (LAYER, "penultimate"):
        state = parts_of(torch.load(folder / f"{layer}.pt", weights_only=True)["average"])
        tensors |= {f"{layer}.{name}": value.half().contiguous() for name, value in state.items() if not name.startswith("decoder.")}
    save_file(tensors, out)
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB, sha256 {file_digest(out)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with imagenette160-train.tar and imagenette160-val.tar")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, log and samples")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "sightline-imagenette")
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--feature", type=float, default=0.5, help="weight of the features of the layers between")
    parser.add_argument("--code", type=float, default=0.5, help="weight of the features made from")
    parser.add_argument("--image", type=float, default=20.0, help="weight of the coarse picture")
    parser.add_argument("--pixel", type=float, default=0.5, help="weight of the pixels")
    parser.add_argument("--adversarial", type=float, default=0.05, help="weight of the discriminator's view")
    parser.add_argument("--warm", type=int, default=1500, help="steps on colours and rough shapes alone, at first")
    parser.add_argument("--every", type=int, default=250, help="steps between two checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=False, help="autocast to bfloat16")
    parser.add_argument("--export", type=Path, help="writes the weights of decoder and composer to this file instead of training")
    options = parser.parse_args()
    if options.export:
        export(options.out, options.export)
    else:
        train(options)


if __name__ == "__main__":
    main()
