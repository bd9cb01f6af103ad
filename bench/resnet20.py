"""The CIFAR-10 ResNet-20 of the data folder (He et al. 2016, section 4.2), and its test images."""

import json
import os
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import sightline as sl

DATA = Path(os.environ.get("SIGHTLINE_DATA") or Path(__file__).parents[2] / "shared" / "data")


class Block(nn.Module):
    """Two convolutions and a shortcut that drops every second place and adds empty channels."""

    def __init__(self, width: int, wider: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = (
            nn.Conv2d(width, wider, 3, stride, 1, bias=False),
            nn.BatchNorm2d(wider),
        )
        self.conv2, self.bn2 = nn.Conv2d(wider, wider, 3, 1, 1, bias=False), nn.BatchNorm2d(wider)
        self.stride, self.more = stride, (wider - width) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(
            y + F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more, self.more))
        )


class ResNet20(nn.Module):
    """Three stages of three blocks, 16, 32 and 64 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(
                *(
                    Block(first if k == 0 else wide, wide, 1 + (k == 0 and first < wide))
                    for k in range(3)
                )
            )
            for first, wide in ((16, 16), (16, 32), (32, 64))
        )
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def network(folder: Path = DATA) -> tuple[nn.Module, dict]:
    """The network with its weights, and the facts about it."""
    facts, body = json.loads((folder / "nets" / "cifar10_resnet20.json").read_text()), ResNet20()
    state = {
        name: value.float()
        for name, value in load_file(folder / "nets" / "cifar10_resnet20.safetensors").items()
    }
    missing, unexpected = body.load_state_dict(state, strict=False)
    if unexpected or [name for name in missing if not name.endswith("num_batches_tracked")]:
        raise ValueError(f"weights don't fit: missing {missing}, unexpected {unexpected}")
    return body.eval(), facts


def loaded(folder: Path = DATA) -> sl.Model:
    """The same as a Model."""
    body, facts = network(folder)
    return sl.load(
        body, mean=facts["mean"], std=facts["std"], labels=facts["labels"], size=32, device="cpu"
    )


def images(count: int, folder: Path = DATA) -> tuple[Tensor, Tensor]:
    """The first test images and their classes."""
    data = np.load(folder / "cifar10" / "cifar10_test.npz")
    return torch.from_numpy(data["images"][:count]).permute(
        0, 3, 1, 2
    ).float().contiguous() / 255, torch.from_numpy(data["labels"][:count]).long()
