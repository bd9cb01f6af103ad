"""Trains `sightnet_plain` on Imagenette.

    python training/train_sightnet_plain.py --data DIR --out DIR

Progressive image sizes, channels_last, bfloat16 where the processor has it, one cycle of the
learning rate, label smoothing, mix-up, an exponential moving average of the weights, a checkpoint
per epoch. Stopped at any moment, the same command goes on from the last whole epoch.

Two things are done for the looks of the first layer, since it exists to be looked at: its filters
start from smoothed noise, and a small penalty holds down their Laplacian. What is left of the
random start in a filter that is seldom used is then soft instead of grainy.
"""

import argparse
import math
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from evaluate import measure_accuracy
from imagenette import Photos, jitter_color, normalize, random_crop, to_tensor
from journal import load_checkpoint, run_script, save_checkpoint
from roughness import measure_roughness
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.models.zoo.sightnet import make_sightnet

# From these shares of the run on, the images have the next of these sides; the last is an option.
SIZE_CHANGES = (0.15, 0.4, 0.55, 0.9)
FIRST_SIZES = (64, 96, 112, 128)

# Share of the steps over which the learning rate rises; then it falls along a cosine.
WARMUP_SHARE = 0.15

AVERAGE_DECAY = 0.998


def choose_image_size(progress: float, largest: int) -> int:
    """The side in pixels at `progress` of the run in [0, 1): small images first."""
    sizes = [*FIRST_SIZES, largest]
    return sizes[sum(progress >= change for change in SIZE_CHANGES)]


def choose_learning_rate(progress: float, largest: float) -> float:
    """The learning rate at `progress` of the run in [0, 1): one cycle."""
    if progress < WARMUP_SHARE:
        return largest * (progress / WARMUP_SHARE)
    phase = (progress - WARMUP_SHARE) / (1 - WARMUP_SHARE)
    return largest * (0.5 * (1 + math.cos(math.pi * phase)))


@torch.no_grad()
def smooth_initial_filters(filters: nn.Parameter) -> None:
    """Blurs initialized filters with a Gaussian of σ = 1 and restores their standard deviation."""
    line = torch.exp(-torch.arange(-3.0, 4).square() / 2)
    kernel = (line[:, None] * line).div(line.sum() ** 2).view(1, 1, 7, 7)
    deviation = filters.std()
    blurred = F.conv2d(filters.flatten(0, 1).unsqueeze(1), kernel, padding=3)
    filters.copy_(blurred.view_as(filters))
    filters.mul_(deviation / filters.std())


def iterate_batches(
    photos: Photos, size: int, batch: int, min_area: float, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of augmented batches, prepared by a thread while the network works.

    Images are in [0, 1]. The same seed gives the same batches.
    """
    ready: queue.Queue[tuple[Tensor, Tensor] | None] = queue.Queue(maxsize=4)

    def prepare() -> None:
        rng = np.random.default_rng(seed)
        color_rng = torch.Generator().manual_seed(seed)
        order = rng.permutation(len(photos))
        for start in range(0, len(order) - batch + 1, batch):
            items = [photos[index] for index in order[start : start + batch]]
            crops = [random_crop(image, size, rng, min_area) for image, _ in items]
            images = jitter_color(to_tensor(crops), color_rng)
            labels = torch.tensor([label for _, label in items])
            ready.put((images, labels))
        ready.put(None)

    threading.Thread(target=prepare, daemon=True).start()
    while (item := ready.get()) is not None:
        yield item


def mix_up(
    image: Tensor, label: Tensor, alpha: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor, float]:
    """Mix-up (Zhang 2018) of the batch with itself reversed.

    Returns the mixed images, the labels of the reversed batch, and the weight of the own labels.
    """
    weight = float(rng.beta(alpha, alpha)) if alpha > 0 else 1.0
    mixed = image * weight + image.flip(0) * (1 - weight)
    return mixed, label.flip(0), weight


def measure_validation_accuracy(network: nn.Module, photos: Photos) -> float:
    """Validation accuracy of the averaged weights at 160 pixels."""
    network.eval()
    return measure_accuracy(lambda image: network(normalize(image)), photos, 160)


def make_optimizer(network: nn.Module, weight_decay: float) -> torch.optim.SGD:
    """SGD with Nesterov momentum; biases and norms have no weight decay."""
    weights = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in network.parameters() if parameter.ndim == 1]
    groups = [{"params": weights, "weight_decay": weight_decay}, {"params": vectors}]
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)


def train(options: argparse.Namespace) -> None:
    torch.manual_seed(options.seed)
    network = make_sightnet(batch_norm=True).to(memory_format=torch.channels_last)
    smooth_initial_filters(network.get_submodule("conv1").weight)
    average = torch.optim.swa_utils.AveragedModel(
        network,
        multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(AVERAGE_DECAY),
        use_buffers=True,
    )
    optimizer = make_optimizer(network, options.decay)
    photos = Photos(options.data / "imagenette160-train.tar", options.out)
    validation_photos = Photos(options.data / "imagenette160-val.tar", options.out)

    checkpoint = options.out / "checkpoint.pt"
    log_path = options.out / "log.jsonl"
    first_epoch = 0
    rows: list[dict[str, float]] = []
    if checkpoint.exists():
        parts = {"net": network, "average": average, "optimizer": optimizer}
        first_epoch, rows = load_checkpoint(checkpoint, log_path, parts, "epoch")

    for epoch in range(first_epoch, options.epochs):
        started_at = time.time()
        size = choose_image_size(epoch / options.epochs, options.size)
        mean_loss = train_epoch(
            network, average, optimizer, photos, epoch=epoch, size=size, options=options
        )
        row = {
            "epoch": epoch + 1,
            "size": size,
            "loss": round(mean_loss, 4),
            "seconds": round(time.time() - started_at, 1),
        }
        if (epoch + 1) % options.every == 0 or epoch + 1 == options.epochs:
            accuracy = measure_validation_accuracy(average.module, validation_photos)
            row["accuracy"] = round(accuracy, 4)

        state = {
            "net": network.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer.state_dict(),
            "epoch": epoch + 1,
        }
        rows.append(row)
        save_checkpoint(checkpoint, state, log_path, rows)
        print(row, flush=True)


def train_epoch(
    network: nn.Module,
    average: torch.optim.swa_utils.AveragedModel,
    optimizer: torch.optim.SGD,
    photos: Photos,
    *,
    epoch: int,
    size: int,
    options: argparse.Namespace,
) -> float:
    """Trains for one epoch and returns the mean loss without the penalty on roughness."""
    step_count = len(photos) // options.batch
    rng = np.random.default_rng([options.seed, epoch])
    batch_seed = options.seed * 10_000 + epoch
    batches = iterate_batches(photos, size, options.batch, options.least, batch_seed)
    first_filters = network.get_submodule("conv1").weight
    losses: list[float] = []
    network.train()
    for step, (image, label) in enumerate(batches):
        progress = (epoch * step_count + step) / (options.epochs * step_count)
        for group in optimizer.param_groups:
            group["lr"] = choose_learning_rate(progress, options.lr)
        alpha = options.mixup if rng.random() < 0.5 else 0.0
        mixed, other_label, weight = mix_up(normalize(image), label, alpha, rng)
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            logits = network(mixed).float()
        own_loss = F.cross_entropy(logits, label, label_smoothing=0.1)
        other_loss = F.cross_entropy(logits, other_label, label_smoothing=0.1)
        loss = weight * own_loss + (1 - weight) * other_loss
        (loss + options.smooth * measure_roughness(first_filters)).backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(network)
        losses.append(loss.item())
    return float(np.mean(losses))


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
    run_script(main)
