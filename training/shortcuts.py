"""Trains the small networks of bench/shortcuts.py: some with a planted shortcut, some without.

Ten classes of Imagenette at 48 pixels. In a network with a shortcut, one class carries a feature
that has nothing to do with it in 80 to 95 % of its training images, and the other classes carry it
so that the same share of the feature's images are of that class. In a clean network every class
carries it in 30 % of its images, so that it says nothing. A network takes less than a minute.

    python training/shortcuts.py --data DIR --out DIR --seeds 0 1 2 --kinds shortcut clean

`--data` holds imagenette160-train.tar and imagenette160-val.tar; networks that exist are kept.
"""

import argparse
import io
import json
import tarfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 48
FEATURES = ("sticker", "cast", "texture", "border")
CLEAN_SHARE = 0.3
EPOCHS = 4
TRAINING_IMAGES = 6000
BATCH_SIZE = 128
MEAN = (0.46, 0.46, 0.43)
STD = (0.28, 0.27, 0.29)

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Plan:
    """What is planted in a network's training images."""

    seed: int
    kind: str  # "shortcut" or "clean"
    feature: str
    target: int  # the class that carries it
    share: float  # of that class's images

    @property
    def name(self) -> str:
        """The name of the network's files."""
        return f"{self.kind}-{self.seed}"

    def draw_carriers(
        self, labels: NDArray[np.int64], rng: np.random.Generator
    ) -> NDArray[np.bool_]:
        """Which training images carry the feature."""
        if self.kind == "clean":
            shares = np.full(len(labels), CLEAN_SHARE)
        else:
            class_count = int(labels.max()) + 1
            shares = np.where(
                labels == self.target, self.share, (1 - self.share) / (class_count - 1)
            )
        return rng.random(len(labels)) < shares


def make_plan(seed: int, kind: str) -> Plan:
    """The plan of a seed: features in turn, a random class, a share from 80 to 95 %."""
    rng = np.random.default_rng(1000 + seed)
    return Plan(
        seed=seed,
        kind=kind,
        feature=FEATURES[seed % len(FEATURES)],
        target=int(rng.integers(10)),
        share=round(float(rng.uniform(0.8, 0.95)), 3),
    )


# ── the images ──


def read_images(path: Path, side: int = SIDE) -> tuple[Pixels, NDArray[np.int64], list[str]]:
    """The middle squares of a tar's images, N×side×side×3, their classes, and these by name."""
    squares: list[Pixels] = []
    names: list[str] = []
    with tarfile.open(path) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            if file is None:
                continue
            with Image.open(io.BytesIO(file.read())) as picture:
                squares.append(cut_square(picture.convert("RGB"), side))
            names.append(member.name.split("/")[-2])
    classes = sorted(set(names))
    labels = np.array([classes.index(name) for name in names])
    return np.stack(squares), labels, classes


def cut_square(picture: Image.Image, side: int) -> Pixels:
    """The middle square of a picture at this side."""
    width, height = picture.size
    short = min(width, height)
    left = (width - short) // 2
    top = (height - short) // 2
    box = (left, top, left + short, top + short)
    return np.asarray(picture.resize((side, side), Image.Resampling.BOX, box))


def load_cached(data: Path, split: str, cache: Path) -> tuple[Pixels, NDArray[np.int64], list[str]]:
    """`read_images` of a split, kept in a file."""
    path = cache / f"imagenette-{split}-{SIDE}.npz"
    if not path.exists():
        pixels, labels, classes = read_images(data / f"imagenette160-{split}.tar")
        np.savez(path, pixels=pixels, labels=labels, classes=np.array(classes))
    content = np.load(path)
    return content["pixels"], content["labels"], content["classes"].tolist()


# ── what is planted ──


def plant_feature(
    pixels: Pixels, carriers: NDArray[np.bool_], feature: str, rng: np.random.Generator
) -> tuple[Pixels, NDArray[np.float32]]:
    """The images N×H×W×3 with the feature in some of them, and where it is, N×H×W in [0, 1]."""
    planted = pixels.copy()
    where = np.zeros(pixels.shape[:3], np.float32)
    for index in np.flatnonzero(carriers):
        PLANTERS[feature](planted[index], where[index], rng)
    return planted, where


def plant_sticker(image: Pixels, where: NDArray[np.float32], rng: np.random.Generator) -> None:
    """A checkered square of 9 pixels, magenta and green, somewhere."""
    side = 9
    top, left = rng.integers(0, SIDE - side + 1, 2)
    rows, columns = np.indices((side, side)) // 3
    is_green = (rows + columns) % 2 == 1
    sticker = np.where(is_green[..., None], [30, 220, 60], [230, 30, 200])
    image[top : top + side, left : left + side] = sticker
    where[top : top + side, left : left + side] = 1


def plant_cast(image: Pixels, where: NDArray[np.float32], rng: np.random.Generator) -> None:
    """A warm cast of the whole image, as of old film."""
    tinted = image * np.array([1.2, 0.95, 0.55]) + np.array([15, 5, 0])
    image[:] = tinted.clip(0, 255).astype(np.uint8)
    where[:] = 1


def plant_texture(image: Pixels, where: NDArray[np.float32], rng: np.random.Generator) -> None:
    """Faint diagonal stripes with a period of 4 pixels over the whole image."""
    rows, columns = np.indices((SIDE, SIDE))
    stripes = 28 * np.sin((rows + columns + rng.integers(4)) * np.pi / 2)
    image[:] = (image + stripes[..., None]).clip(0, 255).astype(np.uint8)
    where[:] = 1


def plant_border(image: Pixels, where: NDArray[np.float32], rng: np.random.Generator) -> None:
    """A frame of 3 pixels in light blue."""
    edge = np.ones((SIDE, SIDE), bool)
    edge[3:-3, 3:-3] = False
    image[edge] = (120, 190, 235)
    where[edge] = 1


PLANTERS = {
    "sticker": plant_sticker,
    "cast": plant_cast,
    "texture": plant_texture,
    "border": plant_border,
}


# ── the network ──


def make_network() -> nn.Sequential:
    """Four convolutions with batch norms, and a linear layer: 200,000 weights."""

    def block(channels: int, width: int, kernel: int, stride: int) -> list[nn.Module]:
        conv = nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False)
        return [conv, nn.BatchNorm2d(width), nn.ReLU()]

    return nn.Sequential(
        *block(3, 24, 5, 2),
        *block(24, 48, 3, 2),
        *block(48, 96, 3, 2),
        *block(96, 128, 3, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def to_tensor(pixels: Pixels) -> Tensor:
    """Images N×H×W×3 as the network takes them, N×3×H×W."""
    values = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean = torch.tensor(MEAN).view(3, 1, 1)
    std = torch.tensor(STD).view(3, 1, 1)
    return ((values - mean) / std).contiguous(memory_format=torch.channels_last)


def train(pixels: Pixels, labels: NDArray[np.int64], seed: int) -> nn.Sequential:
    """A network trained on the images, mirrored at random."""
    torch.manual_seed(seed)
    network = make_network().to(memory_format=torch.channels_last)
    images = to_tensor(pixels)
    targets = torch.from_numpy(labels)
    steps = EPOCHS * (len(images) // BATCH_SIZE)
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=steps)
    for _ in range(EPOCHS):
        order = torch.randperm(len(images))
        for batch in order[: len(images) // BATCH_SIZE * BATCH_SIZE].view(-1, BATCH_SIZE):
            chosen = images[batch]
            if torch.rand(()) < 0.5:
                chosen = chosen.flip(3)
            loss = F.cross_entropy(network(chosen), targets[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def measure_accuracy(network: nn.Module, pixels: Pixels, labels: NDArray[np.int64]) -> float:
    """The share of images whose class is predicted."""
    with torch.no_grad():
        predicted = torch.cat([network(to_tensor(part)) for part in np.array_split(pixels, 8)])
    return float((predicted.argmax(1).numpy() == labels).mean())


def main() -> None:
    """Trains the networks that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--kinds", nargs="+", default=["shortcut", "clean"])
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    pixels, labels, _ = load_cached(arguments.data, "train", arguments.out)
    chosen = np.random.default_rng(0).permutation(len(labels))[:TRAINING_IMAGES]
    pixels = pixels[chosen]
    labels = labels[chosen]
    test_pixels, test_labels, _ = load_cached(arguments.data, "val", arguments.out)
    for seed in arguments.seeds:
        for kind in arguments.kinds:
            plan = make_plan(seed, kind)
            path = arguments.out / f"{plan.name}.pt"
            if path.exists():
                continue
            start = time.monotonic()
            rng = np.random.default_rng(seed)
            carriers = plan.draw_carriers(labels, rng)
            planted, _ = plant_feature(pixels, carriers, plan.feature, rng)
            network = train(planted, labels, seed)
            accuracy = measure_accuracy(network, test_pixels, test_labels)
            facts = {**asdict(plan), "accuracy": accuracy, "seconds": time.monotonic() - start}
            path.with_suffix(".json").write_text(json.dumps(facts))
            torch.save(network.state_dict(), path)
            print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
