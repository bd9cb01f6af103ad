"""Trains the composer, which makes relu4_2's features of a photograph from its last ones: `python training/composer.py --data DIR --out DIR`.

The generator of a vector, after Dosovitskiy & Brox (2016, NIPS), in two parts: this one knows where things are, the decoder of
`training/generator.py`, which it needs in --out, how they look. It works on features alone and costs little: they should be near the
photograph's, lead to the same last features, and be taken for a photograph's by a discriminator that is told those. The features of six
crops of each photograph are computed once and kept in the cache (1 GB). Every batch is drawn from the seed and its own number, so the same
command goes on after a stop as if there had been none.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from generator import SIDE, Comparator, hinge, measured, moving, parts_of, relative, save, sheet, told
from imagenette import Photos, center_crop, random_crop, to_tensor
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.networks.decoder import BROAD, CHANNELS, PLACES, Composer, Decoder

CROPS = 6


class Judge(nn.Module):
    """Whether features of relu4_2 are a photograph's with these last features: one logit for each of 3×3 places."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.spectral_norm
        self.decoder = [decoder]  # not its own: only for mean and deviation
        self.body = nn.ModuleList(
            norm(nn.Conv2d(CHANNELS if first else BROAD, BROAD, 3, stride=stride, padding=1)) for first, stride in ((1, 1), (0, 2), (0, 1))
        )
        self.judge, self.told = norm(nn.Conv2d(BROAD, 1, 1)), norm(nn.Linear(CHANNELS, BROAD))

    def forward(self, features: Tensor, code: Tensor) -> Tensor:
        """Logits, N×9, by projection (Miyato & Koyama 2018)."""
        x = (features - self.decoder[0].mean) / self.decoder[0].deviation
        for layer in self.body:
            x = F.leaky_relu(layer(x), 0.2)
        return (self.judge(x).squeeze(1) + (x * self.told(code)[..., None, None]).sum(1)).flatten(1)


def remembered(compare: Comparator, photos: Photos, options: argparse.Namespace) -> np.ndarray:
    """Features of crops of every photograph, half precision, N×256×6×6; computed once."""
    path, shape = options.cache / "relu4_2.f16", (CROPS * len(photos), CHANNELS, PLACES, PLACES)
    if not path.exists():
        new = np.memmap(path.with_suffix(".new"), np.float16, "w+", shape=shape)
        for first in range(0, len(new), 64):
            rng = np.random.default_rng([7, first])
            crops = [random_crop(photos[i // CROPS][0], SIDE, rng, 0.4) for i in range(first, min(first + 64, len(new)))]
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
                new[first : first + 64] = compare(to_tensor(crops).contiguous(memory_format=torch.channels_last))["relu4_2"].half().numpy()
        new.flush()
        path.with_suffix(".new").rename(path)
    return np.memmap(path, np.float16, "r", shape=shape)


def started(decoder: Decoder, compare: Comparator, features: np.ndarray) -> Composer:
    """A composer with weights drawn for leaky ReLU, and the statistics of the last features over 2,048 crops."""
    composer = Composer(decoder.requires_grad_(False))
    for module in (composer.places, composer.enter, composer.refine, composer.leave):
        nn.init.kaiming_normal_(module.weight, 0.3)
        nn.init.zeros_(module.bias)
    chosen = np.array(features[:: len(features) // 2048][:2048])
    with torch.no_grad():
        last = torch.cat([compare.after(torch.from_numpy(part).float()) for part in np.split(chosen, 32)])
    composer.mean, composer.deviation = last.mean(0, keepdim=True), last.std(0, keepdim=True).clamp_min(1e-3)
    return composer


def painter(folder: Path) -> Decoder:
    """The decoder that was trained first, its averaged weights."""
    state, decoder = torch.load(folder / "relu4_2.pt", weights_only=True)["average"], Decoder()
    decoder.load_state_dict(parts_of(state))
    return decoder.eval()


def train(options: argparse.Namespace) -> None:
    torch.manual_seed(options.seed)
    compare, photos = Comparator(), Photos(options.data / "imagenette160-train.tar", options.cache)
    features = remembered(compare, photos, options)
    held = Photos(options.data / "imagenette160-val.tar", options.cache)
    validation = to_tensor([center_crop(held[int(i)][0], SIDE) for i in np.linspace(0, len(held) - 1, 256).astype(int)])
    decoder = painter(options.out)
    composer, judge = started(decoder, compare, features), Judge(decoder)
    average = torch.optim.swa_utils.AveragedModel(composer, avg_fn=moving)
    makers = torch.optim.Adam([p for p in composer.parameters() if p.requires_grad], lr=options.lr, betas=(0.5, 0.99))
    judges = torch.optim.Adam(judge.parameters(), lr=options.lr / 2, betas=(0.0, 0.99))
    parts = {"composer": composer, "judge": judge, "average": average, "makers": makers, "judges": judges}
    checkpoint, first = options.out / "penultimate.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        first = state["step"]
    began, sums = time.time(), dict[str, float]()
    for step in range(first, options.steps):
        for optimizer, share in ((makers, 1.0), (judges, 0.5)):
            optimizer.param_groups[0]["lr"] = share * options.lr * min(1, (1 - step / options.steps) / 0.4)
        chosen = np.sort(np.random.default_rng([options.seed, step]).integers(0, len(features), options.batch))
        wanted = torch.from_numpy(features[chosen]).float()
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            with torch.no_grad():
                last = compare.after(wanted).float()
            made, code = composer.composed(last).float(), told(last)
            hinge(judge(wanted, code).float(), judge(made.detach(), code).float()).backward()
            judges.step()
            judges.zero_grad()
            loss = {
                "features": ((made - wanted) / decoder.deviation).square().mean(),
                "last": relative(compare.after(made).float(), last),
                "adversarial": -options.adversarial * judge(made, code).float().mean(),
            }
        torch.stack(list(loss.values())).sum().backward()
        makers.step()
        makers.zero_grad()
        judges.zero_grad()
        average.update_parameters(composer)
        for name, value in loss.items():
            sums[name] = sums.get(name, 0.0) + value.item() / options.every
        if (step + 1) % options.every == 0 or step + 1 == options.steps:
            row = {"step": step + 1, **sums, **measured(average.module, compare, validation, "penultimate"), "seconds": time.time() - began}
            save({name: part.state_dict() for name, part in parts.items()} | {"step": step + 1}, checkpoint)
            sheet(average.module, compare, validation[::16], "penultimate", options.out / f"penultimate-{step + 1:06}.png")
            with (options.out / "penultimate.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            print({name: round(value, 4) for name, value in row.items()}, flush=True)
            began, sums = time.time(), {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with imagenette160-train.tar and imagenette160-val.tar")
    parser.add_argument("--out", type=Path, required=True, help="folder with relu4_2.pt, for checkpoints, log and samples")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "sightline-imagenette")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--adversarial", type=float, default=0.2, help="weight of the discriminator's view")
    parser.add_argument("--every", type=int, default=500, help="steps between two checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=False, help="autocast to bfloat16")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
