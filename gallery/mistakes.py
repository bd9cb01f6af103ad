"""From a mistake to its cause
===========================

A small network learns circles, squares and triangles. Nearly all circles have a yellow corner, and
the network takes the corner for the circle. Over drawings in which a third of the other shapes have
the corner, too, the mistakes are grouped, and the units behind them turned off.
"""

import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import sightline as sl
from sightline.images.plotting.charts import draw_bar_chart
from sightline.images.plotting.maps import arrange_with_titles, make_contact_sheet

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"
CLASSES = ("circle", "square", "triangle")


def draw(label: int, has_corner: bool, generator: torch.Generator) -> torch.Tensor:
    """A shape of some color, size and place on another color, 3×48×48."""
    background, color = torch.rand(2, 3, 1, 1, generator=generator)
    size, top, left = torch.rand(3, generator=generator).tolist()
    radius = 8 + 6 * size
    rows, columns = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
    rows = rows - (16 + 16 * top)
    columns = columns - (16 + 16 * left)
    masks = (
        rows**2 + columns**2 < radius**2,
        (rows.abs() < 0.85 * radius) & (columns.abs() < 0.85 * radius),
        (rows < 0.7 * radius) & (rows > 2 * columns.abs() - radius),
    )
    image = torch.where(masks[label], color, 0.5 * background)
    image = image + 0.04 * torch.randn(3, 48, 48, generator=generator)
    if has_corner:
        image[:, :7, :7] = torch.tensor([1.0, 0.9, 0.1]).view(3, 1, 1)
    return image.clamp(0, 1)


def draw_many(
    count: int, corner_shares: tuple[float, ...], seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Drawings, and their classes; a share of each class has the corner."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    chances = torch.rand(count, generator=generator)
    images = [
        draw(label, chance < corner_shares[label], generator)
        for label, chance in zip(labels.tolist(), chances.tolist(), strict=True)
    ]
    return torch.stack(images), labels


torch.manual_seed(0)
network = nn.Sequential(
    nn.Conv2d(3, 16, 5, 2, 2),
    nn.ReLU(),
    nn.Conv2d(16, 32, 3, 2, 1),
    nn.ReLU(),
    nn.Conv2d(32, 32, 3, 1, 1),
    nn.ReLU(),
    nn.AdaptiveMaxPool2d(2),
    nn.Flatten(),
    nn.Linear(128, 3),
)
images, labels = draw_many(900, (0.97, 0.01, 0.01), seed=1)
optimizer = torch.optim.Adam(network.parameters(), 3e-3)
for _ in range(250):
    batch = torch.randint(0, len(images), (64,))
    loss = F.cross_entropy(network((images[batch] - 0.5) / 0.25), labels[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

model = sl.load(
    network.eval(), labels=CLASSES, size=48, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
)
images, labels = draw_many(300, (0.97, 0.3, 0.3), seed=2)
with tempfile.TemporaryDirectory() as folder:
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        path = Path(folder) / "drawings" / CLASSES[label] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        sl.write(image, path)
    scan = sl.scan(model, f"{folder}/drawings", store=f"{folder}/a.scan", layers=["1", "3", "5"])
    result = sl.mistakes(scan, model=model)
    first = result.groups[0]
    mistakes = make_contact_sheet(scan.thumbnails(first.ids[:12].tolist()), columns=4)

print(first.sentence)
tests = {test.kind: test for test in first.tests}
rows: list[str] = []
shares: list[float] = []
for kind, test in tests.items():
    rows += [
        f"{kind}: {test.changed} of {test.images} change",
        f"by chance: {test.random_changed:.1f}",
    ]
    shares += [test.changed / test.images, test.random_changed / test.images]
title = f"{len(first.ids)} taken for {first.class_name}"
sl.write(
    arrange_with_titles(
        [title, "is the corner the cause?"], [mistakes, draw_bar_chart(rows, shares)]
    ),
    PICTURES / "mistakes.png",
)
