"""What the trainings of the two generators share: a maker against a judge, the maker's moving average, and what is kept of a run.

A run that is begun again in the same folder goes on from its last checkpoint.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F


class Comparing(Protocol):
    """Features of pictures by layer, and the network that they are of."""

    body: nn.Module

    def __call__(self, image: Tensor) -> dict[str, Tensor]: ...


class Contest:
    """One run for a layer: `maker` descends losses, `judge` tells what it makes from the real; `step` is how many are done."""

    def __init__(
        self,
        maker: nn.Module,
        judge: nn.Module,
        layer: str,
        options: argparse.Namespace,
        *,
        share: float,
        weight: float,
    ) -> None:
        self.layer, self.options, self.share = layer, options, share
        self.maker, self.judge, self.step = maker, judge, 0
        self.average = torch.optim.swa_utils.AveragedModel(maker, avg_fn=moving)
        trained = [parameter for parameter in maker.parameters() if parameter.requires_grad]
        self.makers = torch.optim.Adam(trained, lr=options.lr, betas=(0.5, 0.99))
        self.judges = torch.optim.Adam(judge.parameters(), lr=share * options.lr, betas=(0.0, 0.99))
        self.weight, self.began, self.sums = weight, time.time(), dict[str, float]()
        self.parts: dict[str, Any] = {
            "maker": maker, "judge": judge, "average": self.average, "makers": self.makers, "judges": self.judges,
        }  # fmt: skip

    @property
    def checkpoint(self) -> Path:
        return self.options.out / f"{self.layer}.pt"

    def resume(self) -> bool:
        """Goes to the checkpoint; whether there is one."""
        if not self.checkpoint.exists():
            return False
        state = torch.load(self.checkpoint, weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        self.step = state["step"]
        return True

    def pace(self, factor: float) -> None:
        """Sets the step sizes: a share of the first ones, the judge's a share of the maker's."""
        for optimizer, share in ((self.makers, 1.0), (self.judges, self.share)):
            optimizer.param_groups[0]["lr"] = share * self.options.lr * factor

    def told_apart(self, real: Tensor, made: Tensor, told: Tensor) -> Tensor:
        """A step of the judge, who is told something of both; then what the maker lacks in its eyes."""
        (
            F.relu(1 - self.judge(real, told).float())
            + F.relu(1 + self.judge(made.detach(), told).float())
        ).mean().backward()
        self.judges.step()
        self.judges.zero_grad()
        return -self.weight * self.judge(made, told).float().mean()

    def descend(self, losses: Mapping[str, Tensor]) -> None:
        """A step of the maker."""
        torch.stack(list(losses.values())).sum().backward()
        self.makers.step()
        self.makers.zero_grad()
        self.judges.zero_grad()
        self.average.update_parameters(self.maker)
        self.step += 1
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.item() / self.options.every

    def keep(self, compare: Comparing, held_out: Tensor) -> None:
        """At every so many steps, and at the last: checkpoint, a line of the log, a sheet of pictures."""
        if self.step % self.options.every and self.step != self.options.steps:
            return
        made = self.average.module
        row = {
            "step": self.step,
            **self.sums,
            **measured(made, compare, held_out, self.layer),
            "seconds": time.time() - self.began,
        }
        new = self.checkpoint.with_suffix(".new")
        torch.save(
            {name: part.state_dict() for name, part in self.parts.items()} | {"step": self.step},
            new,
        )
        os.replace(new, self.checkpoint)
        sheet(
            made,
            compare,
            held_out[::16],
            self.layer,
            self.options.out / f"{self.layer}-{self.step:06}.png",
        )
        with (self.options.out / f"{self.layer}.jsonl").open("a") as log:
            log.write(json.dumps(row) + "\n")
        print({name: round(value, 4) for name, value in row.items()}, flush=True)
        self.began, self.sums = time.time(), {}


def told(last: Tensor) -> Tensor:
    """The last features as a judge is told them: of length 1."""
    return F.layer_norm(last, last.shape[1:]) / 16


def relative(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean over the batch of ‖found − wanted‖² / mean ‖wanted‖²."""
    return (found - wanted).square().mean() / wanted.square().mean()


def moving(average: Tensor, latest: Tensor, count: Tensor | int) -> Tensor:
    """The average of the weights over about the last 500 steps; over fewer at the beginning."""
    return average + (latest - average) * max(0.002, 2 / (10 + float(count)))


def averaged(folder: Path, layer: str) -> dict[str, Tensor]:
    """The averaged weights of a layer's maker, under their own names."""
    state = torch.load(folder / f"{layer}.pt", weights_only=True)["average"]
    return {
        name.removeprefix("module."): value
        for name, value in state.items()
        if name.startswith("module.")
    }


@torch.no_grad()
def measured(maker: nn.Module, compare: Comparing, image: Tensor, layer: str) -> dict[str, float]:
    """On photographs held out: relative error of the features made from, PSNR, and how often both get the same answer."""
    wanted = [compare(part) for part in image.split(64)]
    made = torch.cat([maker(part[layer]) for part in wanted])
    found = [compare(part) for part in made.split(64)]
    a, b = (torch.cat([part[layer].flatten(1) for part in parts]) for parts in (wanted, found))
    head = compare.body.get_submodule("fc")
    same = torch.cat(
        [
            head(x["penultimate"]).argmax(1) == head(y["penultimate"]).argmax(1)
            for x, y in zip(wanted, found, strict=True)
        ]
    )
    return {
        "feature_error": float(((a - b).norm(dim=1) / a.norm(dim=1)).mean()),
        "psnr": float((-10 * (made - image).square().flatten(1).mean(1).log10()).mean()),
        "same_class": float(same.float().mean()),
    }


@torch.no_grad()
def sheet(maker: nn.Module, compare: Comparing, image: Tensor, layer: str, path: Path) -> None:
    """Photographs above, what is made of their features below."""
    rows = torch.cat(
        [torch.cat(list(part), 2) for part in (image, maker(compare(image)[layer]))], 1
    )
    Image.fromarray(rows.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()).save(path)


def arguments(about: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """What both take on the command line."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
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
    parser.add_argument("--adversarial", type=float, help="weight of the judge's view")
    parser.add_argument("--every", type=int, help="steps between two checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--bf16", action=argparse.BooleanOptionalAction, default=False, help="autocast to bfloat16"
    )
    parser.set_defaults(**defaults)
    return parser
