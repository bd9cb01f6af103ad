"""Trains the embedded network against adversarial examples, from weights that were trained plainly.

    python training/train_sightnet.py --data DIR --out DIR

Each batch is attacked before the network learns from it: a few steps of projected gradient ascent
on the loss inside an L2 ball (Madry et al. 2018, ICLR, section 2). Gradients of such a network
follow what people see (Engstrom et al. 2019), so ascent in its pixels shows objects. Part of a
batch can stay as it is. Sizes grow, the ball grows over the first epochs, the learning rate has one
cycle, and the result is a moving average of the weights. Stopped at any moment, the same command
goes on from the last whole epoch.
"""

import argparse
import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evaluate import measure_accuracy
from imagenette import Photos
from journal import check_settings, load_checkpoint, run_script, save_checkpoint
from roughness import measure_roughness
from torch import Tensor, nn
from torch.nn import functional as F
from train_sightnet_plain import iterate_batches, make_optimizer

from sightline.images.io.library import ASSETS_FOLDER
from sightline.models.weights.checkpoint import fill_network_weights, read_weights
from sightline.models.zoo.load import resolve_device
from sightline.models.zoo.sightnet import SIGHTNET_MEAN, SIGHTNET_STD, make_sightnet

PLAIN_WEIGHTS = ASSETS_FOLDER / "sightnet_plain.safetensors"

# The side that the radius of an attack is given for. Other images have a radius in proportion to
# their side, so that the mean change of a pixel is the same.
RADIUS_SIZE = 128

# Share of the steps over which the learning rate rises; then it falls along a cosine.
WARMUP_SHARE = 0.1

AVERAGE_DECAY = 0.995

MAX_GRADIENT_NORM = 2.0

# Options that decide what is learned. A checkpoint of other ones is refused.
DECISIVE_OPTIONS = (
    "epochs", "batch", "sizes", "eps", "ramp", "steps", "clean", "lr", "decay", "least",
    "label_smoothing", "smooth", "seed", "bf16",
)  # fmt: skip


def choose_image_size(progress: float, sizes: Sequence[int]) -> int:
    """The side in pixels at `progress` of the run in [0, 1): each of the sizes as long."""
    return sizes[int(progress * len(sizes))]


def choose_learning_rate(progress: float, largest: float) -> float:
    """The learning rate at `progress` of the run in [0, 1): one cycle."""
    if progress < WARMUP_SHARE:
        return largest * (progress / WARMUP_SHARE)
    phase = (progress - WARMUP_SHARE) / (1 - WARMUP_SHARE)
    return largest * (0.5 * (1 + math.cos(math.pi * phase)))


def choose_radius(epoch: int, size: int, options: argparse.Namespace) -> float:
    """The L2 radius of an epoch's attacks, for images of this side with values in [0, 1]."""
    growth = min(1.0, (epoch + 1) / max(options.ramp, 1))
    return options.eps * growth * size / RADIUS_SIZE


def is_bfloat16_built_in(device: torch.device) -> bool:
    """Whether this device has instructions for bfloat16; without them it is slower, not faster."""
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def measure_norms(change: Tensor) -> Tensor:
    """L2 norms of a batch of changes, N×1×1×1, never zero."""
    return change.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)


class Trainer:
    """The network, the average of its weights, and how both see images.

    Attributes:
        network: What is trained; takes normalized images.
        average: The moving average of the network's weights.
        optimizer: SGD over the network's weights.
        parts: These three, by the names that they have in a checkpoint.
    """

    def __init__(self, network: nn.Module, options: argparse.Namespace) -> None:
        self.options = options
        self.device = resolve_device(options.device)
        self.network = network.to(self.device, memory_format=torch.channels_last)
        self.average = torch.optim.swa_utils.AveragedModel(
            self.network,
            multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(AVERAGE_DECAY),
        )
        self.optimizer = make_optimizer(self.network, options.decay)
        self.parts = {"net": self.network, "average": self.average, "optimizer": self.optimizer}
        self.mean = torch.tensor(SIGHTNET_MEAN, device=self.device).view(1, 3, 1, 1)
        self.deviation = torch.tensor(SIGHTNET_STD, device=self.device).view(1, 3, 1, 1)

    def normalize(self, image: Tensor) -> Tensor:
        return (image - self.mean) / self.deviation

    def compute_logits(self, image: Tensor) -> Tensor:
        """Logits of images in [0, 1], in float32."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.bf16):
            return self.network(self.normalize(image)).float()

    def attack(self, image: Tensor, label: Tensor, radius: float, rng: torch.Generator) -> Tensor:
        """Images that are at most `radius` away in L2, in [0, 1], and that the network gets wrong.

        From a random start, each step follows the normalized gradient of the loss. The steps
        together could cross the ball.
        """
        change = torch.randn(image.shape, generator=rng).to(image)
        share = torch.rand(len(image), 1, 1, 1, generator=rng).to(image)
        change *= radius * share / measure_norms(change)
        step_length = 2 * radius / self.options.steps
        for _ in range(self.options.steps):
            change.requires_grad_()
            loss = F.cross_entropy(self.compute_logits(image + change), label)
            (gradient,) = torch.autograd.grad(loss, change)
            change = change.detach() + step_length * gradient / measure_norms(gradient)
            change *= (radius / measure_norms(change)).clamp(max=1)
            change = (image + change).clamp(0, 1) - image
        return image + change

    def attack_part(
        self, image: Tensor, label: Tensor, radius: float, rng: torch.Generator
    ) -> Tensor:
        """The batch with the first images attacked; the last ones, by `clean`, stay as they are."""
        attacked_count = len(image) - round(self.options.clean * len(image))
        attacked = self.attack(image[:attacked_count], label[:attacked_count], radius, rng)
        return torch.cat([attacked, image[attacked_count:]])

    def train_step(self, image: Tensor, label: Tensor) -> tuple[float, float]:
        """Learns from one batch. Returns its loss without the penalty on roughness, and accuracy.

        As in the plain training, rough filters in the first layer cost a little.
        """
        logits = self.compute_logits(image)
        loss = F.cross_entropy(logits, label, label_smoothing=self.options.label_smoothing)
        first_filters = self.network.get_submodule("conv1").weight
        (loss + self.options.smooth * measure_roughness(first_filters)).backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update_parameters(self.network)
        accuracy = (logits.argmax(1) == label).float().mean()
        return loss.item(), accuracy.item()

    def train_epoch(self, photos: Photos, epoch: int) -> dict[str, float]:
        """Trains for one epoch. Returns the row of the log."""
        options = self.options
        started_at = time.time()
        size = choose_image_size(epoch / options.epochs, options.sizes)
        radius = choose_radius(epoch, size, options)
        epoch_seed = options.seed * 10_000 + epoch
        rng = torch.Generator().manual_seed(epoch_seed)
        step_count = len(photos) // options.batch
        batches = iterate_batches(photos, size, options.batch, options.least, epoch_seed)
        results: list[tuple[float, float]] = []
        self.network.train()
        for step, batch in enumerate(batches):
            progress = (epoch * step_count + step) / (options.epochs * step_count)
            for group in self.optimizer.param_groups:
                group["lr"] = choose_learning_rate(progress, options.lr)
            image, label = (part.to(self.device) for part in batch)
            attacked = self.attack_part(image, label, radius, rng)
            results.append(self.train_step(attacked, label))
        mean_loss, mean_accuracy = np.mean(results, axis=0)
        return {
            "epoch": epoch + 1,
            "size": size,
            "radius": round(radius, 4),
            "loss": round(float(mean_loss), 4),
            "accuracy_in_training": round(float(mean_accuracy), 4),
            "seconds": round(time.time() - started_at, 1),
        }

    def measure_validation_accuracy(self, photos: Photos) -> float:
        """Accuracy of the averaged weights on photographs as they are, at 160 pixels."""
        average = self.average.module.eval()

        def compute_logits(image: Tensor) -> Tensor:
            return average(self.normalize(image.to(self.device))).cpu()

        return measure_accuracy(compute_logits, photos, 160)


def read_settings(options: argparse.Namespace) -> Mapping[str, Any]:
    """What decides the result: options, and a digest of the weights it starts from."""
    settings = {name: getattr(options, name) for name in DECISIVE_OPTIONS}
    return settings | {"start": hashlib.sha256(options.start.read_bytes()).hexdigest()}


def read_start_network(path: Path) -> nn.Sequential:
    """The network with the weights that training starts from."""
    network = make_sightnet()
    fill_network_weights(network, read_weights(path), path, "sightnet")
    return network.float()


def train(options: argparse.Namespace) -> None:
    if options.bf16 is None:
        options.bf16 = is_bfloat16_built_in(resolve_device(options.device))
    if options.threads:
        torch.set_num_threads(options.threads)
    trainer = Trainer(read_start_network(options.start), options)
    settings = read_settings(options)
    photos = Photos(options.data / "imagenette160-train.tar", options.cache or options.out)
    validation_photos = Photos(options.data / "imagenette160-val.tar", options.cache or options.out)

    checkpoint = options.out / "checkpoint.pt"
    log_path = options.out / "log.jsonl"
    first_epoch = 0
    rows: list[dict[str, float]] = []
    if checkpoint.exists():
        check_settings(checkpoint, settings)
        first_epoch, rows = load_checkpoint(checkpoint, log_path, trainer.parts, "epoch")

    for epoch in range(first_epoch, options.epochs):
        row = trainer.train_epoch(photos, epoch)
        if (epoch + 1) % options.every == 0 or epoch + 1 == options.epochs:
            row["accuracy"] = round(trainer.measure_validation_accuracy(validation_photos), 4)
        rows.append(row)
        state = {name: part.state_dict() for name, part in trainer.parts.items()}
        state |= {"epoch": epoch + 1, "settings": settings}
        save_checkpoint(checkpoint, state, log_path, rows)
        print(row, flush=True)


def make_argument_parser() -> argparse.ArgumentParser:
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
        "--out", type=Path, required=True, help="folder for the log and the checkpoint"
    )
    parser.add_argument("--cache", type=Path, help="folder for the decoded images, if another")
    parser.add_argument("--start", type=Path, default=PLAIN_WEIGHTS, help="weights to start from")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        default=[80, 80, 96, 128],
        help="sides trained at in pixels, each for as many epochs",
    )
    parser.add_argument(
        "--eps", type=float, default=1.36, help="L2 radius of an attack on 128 px, values in [0, 1]"
    )
    parser.add_argument("--ramp", type=int, default=3, help="epochs over which the radius grows")
    parser.add_argument("--steps", type=int, default=2, help="steps of an attack")
    parser.add_argument(
        "--clean", type=float, default=0.0, help="share of each batch that is not attacked"
    )
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--decay", type=float, default=5e-4)
    parser.add_argument("--least", type=float, default=0.35, help="least area of a random crop")
    parser.add_argument("--label-smoothing", type=float, default=0.0)
    parser.add_argument(
        "--smooth", type=float, default=0.005, help="weight of the first layer's roughness"
    )
    parser.add_argument("--every", type=int, default=5, help="epochs between two evaluations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="threads of the processor, if fewer")
    parser.add_argument(
        "--bf16",
        action=argparse.BooleanOptionalAction,
        help="autocast to bfloat16; by default where the device has instructions for it",
    )
    return parser


def main() -> None:
    train(make_argument_parser().parse_args())


if __name__ == "__main__":
    run_script(main)
