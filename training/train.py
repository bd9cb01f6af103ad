"""Trains the embedded network on Imagenette: `python training/train.py --data DIR --out DIR`.

Progressive image sizes, channels_last, bfloat16 where the processor has it, one cycle of the learning
rate, label smoothing, mix-up, an exponential moving average of the weights, a checkpoint per epoch.
Stopped at any moment, the same command goes on from the last whole epoch.

Two things are done for the looks of the first layer, since it exists to be looked at: its filters start
from smoothed noise, and a small penalty holds down their Laplacian. What is left of the random start in
a filter that is seldom used is then soft instead of grainy.
"""

import argparse
import json
import math
import os
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from evaluate import accuracy
from imagenette import Photos, jitter_color, normalize, random_crop, to_tensor
from torch import nn
from torch.nn import functional as F

from sightline.models.zoo.sightnet import make_sightnet

LAPLACIAN = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)


def image_size(progress: float, largest: int) -> int:
    """Side in pixels at `progress` of the run in [0, 1): small pictures first, multiples of 16."""
    return [64, 96, 112, 128, largest][min(4, sum(progress >= p for p in (0.15, 0.4, 0.55, 0.9)))]


def roughness(filters: torch.Tensor) -> torch.Tensor:
    """Σ(∇²w)² / Σw² per filter, averaged: about 20 for white noise, below 2 for a smooth edge."""
    curvature = F.conv2d(filters.flatten(0, 1).unsqueeze(1), LAPLACIAN, padding=1).view_as(filters)
    return (
        curvature.square().sum((1, 2, 3)) / filters.square().sum((1, 2, 3)).clamp_min(1e-12)
    ).mean()


def smooth_start(filters: nn.Parameter) -> None:
    """Blurs freshly drawn filters with a Gaussian of σ = 1 and restores their standard deviation."""
    line = torch.exp(-torch.arange(-3.0, 4).square() / 2)
    kernel = (line[:, None] * line).div(line.sum() ** 2).view(1, 1, 7, 7)
    with torch.no_grad():
        deviation = filters.std()
        filters.copy_(
            F.conv2d(filters.flatten(0, 1).unsqueeze(1), kernel, padding=3).view_as(filters)
        )
        filters.mul_(deviation / filters.std())


def batches(
    photos: Photos, size: int, batch: int, least: float, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """One epoch of augmented batches, prepared by a thread while the network works."""
    ready: queue.Queue[tuple[torch.Tensor, torch.Tensor] | None] = queue.Queue(maxsize=4)

    def prepare() -> None:
        rng, noise = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        order = rng.permutation(len(photos))
        for start in range(0, len(order) - batch + 1, batch):
            items = [photos[i] for i in order[start : start + batch]]
            image = to_tensor([random_crop(image, size, rng, least) for image, _ in items])
            ready.put(
                (normalize(jitter_color(image, noise)), torch.tensor([label for _, label in items]))
            )
        ready.put(None)

    threading.Thread(target=prepare, daemon=True).start()
    while (item := ready.get()) is not None:
        yield item


def mix_up(
    image: torch.Tensor, label: torch.Tensor, alpha: float, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Mix-up (Zhang 2018) of the batch with itself reversed: images, the other labels, weight of the first."""
    weight = float(rng.beta(alpha, alpha)) if alpha > 0 else 1.0
    return image * weight + image.flip(0) * (1 - weight), label.flip(0), weight


def measured(net: nn.Module, photos: Photos) -> float:
    """Validation accuracy of the averaged weights at 160 pixels."""
    net.eval()
    return accuracy(lambda image: net(normalize(image)), photos, 160)


def train(options: argparse.Namespace) -> None:
    torch.manual_seed(options.seed)
    net = make_sightnet(batch_norm=True).to(memory_format=torch.channels_last)
    smooth_start(net.get_submodule("conv1").weight)
    average = torch.optim.swa_utils.AveragedModel(
        net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998), use_buffers=True
    )
    decayed = [p for p in net.parameters() if p.ndim > 1]
    plain = [p for p in net.parameters() if p.ndim == 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": options.decay}, {"params": plain}],
        lr=0.1,
        momentum=0.9,
        nesterov=True,
    )
    photos, held_out = (
        Photos(options.data / f"imagenette160-{part}.tar", options.out) for part in ("train", "val")
    )
    checkpoint, first = options.out / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        net.load_state_dict(state["net"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["epoch"]
    steps = len(photos) // options.batch
    for epoch in range(first, options.epochs):
        began, losses = time.time(), []
        size = image_size(epoch / options.epochs, options.size)
        rng = np.random.default_rng([options.seed, epoch])
        net.train()
        for step, (image, label) in enumerate(
            batches(photos, size, options.batch, options.least, options.seed * 10_000 + epoch)
        ):
            done = (epoch * steps + step) / (options.epochs * steps)
            warm = 0.15
            lr = options.lr * (
                done / warm
                if done < warm
                else 0.5 * (1 + math.cos(math.pi * (done - warm) / (1 - warm)))
            )
            for group in optimizer.param_groups:
                group["lr"] = lr
            mixed, other, weight = mix_up(
                image, label, options.mixup if rng.random() < 0.5 else 0.0, rng
            )
            with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
                logits = net(mixed).float()
            loss = weight * F.cross_entropy(logits, label, label_smoothing=0.1) + (
                1 - weight
            ) * F.cross_entropy(logits, other, label_smoothing=0.1)
            (loss + options.smooth * roughness(net.get_submodule("conv1").weight)).backward()
            optimizer.step()
            optimizer.zero_grad()
            average.update_parameters(net)
            losses.append(loss.item())
        row = {
            "epoch": epoch + 1,
            "size": size,
            "loss": round(float(np.mean(losses)), 4),
            "seconds": round(time.time() - began, 1),
        }
        if (epoch + 1) % options.every == 0 or epoch + 1 == options.epochs:
            row["accuracy"] = round(measured(average.module, held_out), 4)
        state = {
            "net": net.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer.state_dict(),
            "epoch": epoch + 1,
        }
        torch.save(state, checkpoint.with_suffix(".new"))
        os.replace(checkpoint.with_suffix(".new"), checkpoint)
        with (options.out / "log.jsonl").open("a") as log:
            log.write(json.dumps(row) + "\n")
        print(row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="folder with imagenette160-train.tar and imagenette160-val.tar",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for the decoded images, the log and the checkpoint",
    )
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=144, help="largest side trained at, in pixels")
    parser.add_argument("--lr", type=float, default=0.06)
    parser.add_argument("--decay", type=float, default=5e-4)
    parser.add_argument("--least", type=float, default=0.3, help="least area of a random crop")
    parser.add_argument(
        "--mixup", type=float, default=0.2, help="alpha of mix-up, applied to half of the batches"
    )
    parser.add_argument(
        "--smooth", type=float, default=0.005, help="weight of the first layer's roughness"
    )
    parser.add_argument("--every", type=int, default=5, help="epochs between two evaluations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--bf16",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="autocast to bfloat16; try it, some processors are far slower with it",
    )
    train(parser.parse_args())


if __name__ == "__main__":
    main()
