"""Adversarial training of a generator against a discriminator, shared by the two generators.

A run that is started again in the same folder resumes from its last checkpoint.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from journal import load_checkpoint, save_checkpoint
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F


class FeatureExtractor(Protocol):
    """Computes features of images by layer. `body` is the network that they come from."""

    body: nn.Module

    def __call__(self, image: Tensor) -> dict[str, Tensor]: ...


class AdversarialTraining:
    """One run for a layer's generator.

    Attributes:
        generator: What is trained, against `discriminator`.
        average: The moving average of the generator's weights.
        layer: The layer whose features the generator takes; it names the files.
        discriminator_lr_share: The discriminator's learning rate over the generator's.
        adversarial_weight: Weight of the discriminator in the generator's loss.
        step: How many steps were taken.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        layer: str,
        options: argparse.Namespace,
        *,
        discriminator_lr_share: float,
        adversarial_weight: float,
    ) -> None:
        self.generator = generator
        self.discriminator = discriminator
        self.layer = layer
        self.options = options
        self.discriminator_lr_share = discriminator_lr_share
        self.adversarial_weight = adversarial_weight
        self.step = 0
        self.average = torch.optim.swa_utils.AveragedModel(generator, avg_fn=update_average)

        trained = [parameter for parameter in generator.parameters() if parameter.requires_grad]
        self.generator_optimizer = torch.optim.Adam(trained, lr=options.lr, betas=(0.5, 0.99))
        self.discriminator_optimizer = torch.optim.Adam(
            discriminator.parameters(), lr=discriminator_lr_share * options.lr, betas=(0.0, 0.99)
        )
        self.started_at = time.time()
        self.mean_losses: dict[str, float] = {}
        self.rows: list[dict[str, float]] = []
        # By the names that they have in a checkpoint.
        self.parts: dict[str, Any] = {
            "maker": generator,
            "judge": discriminator,
            "average": self.average,
            "makers": self.generator_optimizer,
            "judges": self.discriminator_optimizer,
        }

    @property
    def checkpoint(self) -> Path:
        return self.options.out / f"{self.layer}.pt"

    @property
    def log(self) -> Path:
        return self.options.out / f"{self.layer}.jsonl"

    def resume(self) -> bool:
        """Resumes from the checkpoint. Returns whether there is one."""
        if not self.checkpoint.exists():
            return False
        self.step, self.rows = load_checkpoint(self.checkpoint, self.log, self.parts, "step")
        return True

    def scale_learning_rates(self, factor: float) -> None:
        """Sets both learning rates to `factor` of those at the start."""
        lr = self.options.lr * factor
        self.generator_optimizer.param_groups[0]["lr"] = lr
        self.discriminator_optimizer.param_groups[0]["lr"] = self.discriminator_lr_share * lr

    def compute_adversarial_loss(
        self, real: Tensor, generated: Tensor, condition: Tensor
    ) -> Tensor:
        """Takes a step of the discriminator, then returns the generator's weighted loss against it.

        Both losses are hinge losses. The discriminator is conditioned on `condition`.
        """
        real_logits = self.discriminator(real, condition).float()
        generated_logits = self.discriminator(generated.detach(), condition).float()
        discriminator_loss = (F.relu(1 - real_logits) + F.relu(1 + generated_logits)).mean()
        discriminator_loss.backward()
        self.discriminator_optimizer.step()
        self.discriminator_optimizer.zero_grad()
        return -self.adversarial_weight * self.discriminator(generated, condition).float().mean()

    def take_generator_step(self, losses: Mapping[str, Tensor]) -> None:
        """Takes a step of the generator on the sum of the losses."""
        torch.stack(list(losses.values())).sum().backward()
        self.generator_optimizer.step()
        self.generator_optimizer.zero_grad()
        self.discriminator_optimizer.zero_grad()
        self.average.update_parameters(self.generator)
        self.step += 1
        for name, loss in losses.items():
            share = loss.item() / self.options.every
            self.mean_losses[name] = self.mean_losses.get(name, 0.0) + share

    def write_progress(self, extract: FeatureExtractor, validation_images: Tensor) -> None:
        """Writes checkpoint, a line of the log and a sheet, every so many steps and at the last."""
        if self.step % self.options.every and self.step != self.options.steps:
            return
        generator = self.average.module
        row = {
            "step": self.step,
            **self.mean_losses,
            **measure_generator(generator, extract, validation_images, self.layer),
            "seconds": time.time() - self.started_at,
        }
        self.rows.append(row)
        sheet_path = self.options.out / f"{self.layer}-{self.step:06}.png"
        write_sheet(generator, extract, validation_images[::16], self.layer, sheet_path)
        state = {name: part.state_dict() for name, part in self.parts.items()}
        save_checkpoint(self.checkpoint, state | {"step": self.step}, self.log, self.rows)
        print({name: round(value, 4) for name, value in row.items()}, flush=True)
        self.started_at = time.time()
        self.mean_losses = {}


def make_condition(last_features: Tensor) -> Tensor:
    """The last features as discriminators are given them: centred, of length 1."""
    return F.layer_norm(last_features, last_features.shape[1:]) / 16


def compute_relative_error(features: Tensor, target: Tensor) -> Tensor:
    """The mean squared difference over the mean square of the target, both over the batch."""
    return (features - target).square().mean() / target.square().mean()


def update_average(average: Tensor, latest: Tensor, count: Tensor | int) -> Tensor:
    """The average of the weights over about the last 500 steps; over fewer at the beginning."""
    return average + (latest - average) * max(0.002, 2 / (10 + float(count)))


@torch.no_grad()
def measure_generator(
    generator: nn.Module, extract: FeatureExtractor, images: Tensor, layer: str
) -> dict[str, float]:
    """Relative feature error, PSNR, and the share of images that keep their class."""
    image_features = [extract(batch) for batch in images.split(64)]
    generated = torch.cat([generator(features[layer]) for features in image_features])
    generated_features = [extract(batch) for batch in generated.split(64)]

    target = torch.cat([features[layer].flatten(1) for features in image_features])
    actual = torch.cat([features[layer].flatten(1) for features in generated_features])
    relative_errors = (target - actual).norm(dim=1) / target.norm(dim=1)

    mean_squared_errors = (generated - images).square().flatten(1).mean(1)
    psnr = -10 * mean_squared_errors.log10()

    head = extract.body.get_submodule("fc")
    classes, generated_classes = (
        torch.cat([head(features["penultimate"]).argmax(1) for features in batches])
        for batches in (image_features, generated_features)
    )
    return {
        "feature_error": float(relative_errors.mean()),
        "psnr": float(psnr.mean()),
        "same_class": float((classes == generated_classes).float().mean()),
    }


@torch.no_grad()
def write_sheet(
    generator: nn.Module, extract: FeatureExtractor, images: Tensor, layer: str, path: Path
) -> None:
    """Writes a picture of photographs above, and what is generated from their features below."""
    generated = generator(extract(images)[layer])
    rows = [torch.cat(list(row), 2) for row in (images, generated)]
    sheet = torch.cat(rows, 1).clamp(0, 1).mul(255).round().byte()
    Image.fromarray(sheet.permute(1, 2, 0).numpy()).save(path)


def make_argument_parser(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """The options that both generators have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, help="folder with imagenette160-train.tar and imagenette160-val.tar"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for checkpoints, log and samples"
    )
    parser.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir()) / "sightline-imagenette"
    )
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--adversarial", type=float, help="weight of the discriminator")
    parser.add_argument("--every", type=int, help="steps between two checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--bf16", action=argparse.BooleanOptionalAction, default=False, help="autocast to bfloat16"
    )
    parser.set_defaults(**defaults)
    return parser
