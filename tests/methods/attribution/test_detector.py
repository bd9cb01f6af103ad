"""Attributions of a detector of planted objects point at the object that is asked about."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.methods.attribution.cam import gradcam
from sightline.methods.attribution.occlusion import occlusion
from sightline.models.heads.targets import box
from sightline.models.model import Model

HEIGHT = 48
WIDTH = 64
STRIDE = 8
OBJECT_SIDE = 12

# Each class is a plain color.
COLORS = torch.tensor([[0.9, 0.2, 0.1], [0.1, 0.3, 0.9], [0.2, 0.8, 0.2]])


class PlantedDetector(nn.Module):
    """Heat maps of class centres at an eighth of the resolution (Zhou 2019), as torchvision's.

    Each cell whose score is above one half is a detection of a box of the objects' size.
    """

    num_classes = len(COLORS)

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 24, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(24, 32, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.head = nn.Conv2d(32, len(COLORS), 1)

    def compute_heat(self, image: Tensor) -> Tensor:
        return self.head(self.body(image))

    def forward(self, image: Tensor) -> list[dict[str, Tensor]]:
        detections: list[dict[str, Tensor]] = []
        for heat in self.compute_heat(image).sigmoid():
            labels, rows, columns = (heat > 0.5).nonzero(as_tuple=True)
            center_y = rows * STRIDE + STRIDE / 2
            center_x = columns * STRIDE + STRIDE / 2
            half = OBJECT_SIDE / 2
            corners = [center_x - half, center_y - half, center_x + half, center_y + half]
            detections.append(
                {
                    "boxes": torch.stack(corners, 1),
                    "labels": labels,
                    "scores": heat[labels, rows, columns],
                }
            )
        return detections


def plant_objects(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images of two objects on noise; and cells of their centres N×2×3: label, row, column."""
    images = 0.3 + 0.4 * torch.rand(count, 3, HEIGHT // 4, WIDTH // 4, generator=generator)
    images = F.interpolate(images, size=(HEIGHT, WIDTH), mode="bilinear")
    cells = torch.zeros(count, 2, 3, dtype=torch.long)
    for i in range(count):
        sides = torch.randperm(2, generator=generator)  # one object in each half of the image
        labels = torch.randperm(len(COLORS), generator=generator)
        for j in range(2):
            row = int(torch.randint(1, HEIGHT // STRIDE - 1, (), generator=generator))
            column = int(torch.randint(1, 3, (), generator=generator)) + 4 * int(sides[j])
            cells[i, j] = torch.tensor([int(labels[j]), row, column])
            top = row * STRIDE + STRIDE // 2 - OBJECT_SIDE // 2
            left = column * STRIDE + STRIDE // 2 - OBJECT_SIDE // 2
            color = COLORS[labels[j]].view(3, 1, 1)
            images[i, :, top : top + OBJECT_SIDE, left : left + OBJECT_SIDE] = color
    return images, cells


@pytest.fixture(scope="module")
def detector() -> PlantedDetector:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = PlantedDetector()
        optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
        generator = torch.Generator().manual_seed(1)
        for _ in range(120):
            images, cells = plant_objects(24, generator)
            wanted = torch.zeros(24, len(COLORS), HEIGHT // STRIDE, WIDTH // STRIDE)
            for j in range(2):
                labels, rows, columns = cells[:, j].T
                wanted[torch.arange(24), labels, rows, columns] = 1
            heat = network.compute_heat((images - 0.5) / 0.25)
            loss = F.binary_cross_entropy_with_logits(heat, wanted, pos_weight=torch.tensor(8.0))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval()


@pytest.mark.parametrize(("method", "count"), [("gradcam", 30), ("occlusion", 3)])
def test_the_maximum_lies_on_the_object(detector: PlantedDetector, method: str, count: int) -> None:
    model = Model(detector, mean=[0.5] * 3, std=[0.25] * 3, size=(HEIGHT, WIDTH))
    assert model.output_kind == "detections"
    images, cells = plant_objects(count, torch.Generator().manual_seed(2))
    hits = 0
    asked = 0
    for image, image_cells in zip(images, cells, strict=True):
        for label, row, column in image_cells.tolist():
            center_y = row * STRIDE + STRIDE / 2
            center_x = column * STRIDE + STRIDE / 2
            half = OBJECT_SIDE / 2
            corners = (center_x - half, center_y - half, center_x + half, center_y + half)
            target = box(*corners, label=label)
            if float(model.with_target(target).logits(image[None])) < 0.5:
                continue  # the detector misses this one
            if method == "gradcam":
                values = gradcam(model, image[None], target=target, layer="body.5").values
            else:
                values = occlusion(model, image[None], target=target, window=8, stride=4).values
            position = int(values["attribution"][0].argmax())
            hit_row = position // WIDTH
            hit_column = position % WIDTH
            # One position of the layer beside the object still counts, as in the pointing game.
            margin = STRIDE / 2
            is_inside_rows = corners[1] - margin <= hit_row <= corners[3] + margin
            is_inside_columns = corners[0] - margin <= hit_column <= corners[2] + margin
            hits += is_inside_rows and is_inside_columns
            asked += 1
    assert asked >= 0.9 * 2 * count
    assert hits / asked >= 0.95
