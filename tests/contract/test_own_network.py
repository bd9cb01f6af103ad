"""Every example of the page on one's own network runs."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sightline as sl

PAGE = Path(__file__).parents[2] / "docs" / "own_network.md"

GENERATOR = torch.Generator().manual_seed(0)
IMAGE = torch.rand(1, 3, 64, 64, generator=GENERATOR)
OTHER_IMAGE = torch.rand(1, 3, 64, 64, generator=GENERATOR)


class Calling(nn.Module):
    """A convolution, ReLU and a linear layer, in a forward pass that an example needs."""

    def __init__(self, function: Callable[..., Any], channels: int = 3, classes: int = 4) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(6, classes)
        self.dense = nn.Conv2d(6, classes, 1)
        self.function = function

    def score(self, image: Tensor) -> Tensor:
        return self.head(self.body(image).mean((2, 3)))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


class Aged(Calling):
    def forward(self, image: Tensor, age: Tensor) -> Tensor:
        return self.score(image) * age


class Paired(Calling):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.score(left) - self.score(right)


def classify(classes: int = 4, channels: int = 3) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, classes),
    ).eval()


def detect(network: Any, images: Tensor) -> list[dict[str, Tensor]]:
    scores = network.score(images)[:, :2].sigmoid()
    boxes = torch.tensor([[9.0, 19, 45, 61], [1.0, 2, 9, 12]])
    return [{"boxes": boxes, "labels": torch.tensor([1, 2]), "scores": row} for row in scores]


def read_bgr(network: Any, image: Any) -> Tensor:
    if isinstance(image, dict):
        return network.score(image["pixels"])
    return network.score(image.permute(0, 3, 1, 2) / 255)


DENSE = Calling(lambda net, x: {"out": net.dense(net.body(x))}).eval()
DETECTOR = Calling(detect).eval()

# The network of each section, and the model of sections that only ask.
NETWORKS: dict[str, nn.Module] = {
    "Bring your own network": classify(),
    "One score for yes or no": classify(1),
    "Several labels at once": classify(),
    "A regression": classify(1),
    "One of several outputs": Calling(lambda net, x: {"heads": {"sex": net.score(x)}}).eval(),
    "Similarity to another image": classify(),
    "Other bands": classify(channels=5),
    "Further inputs": Aged(len).eval(),
    "Two images": Paired(len).eval(),
    "Another layout": Calling(read_bgr).eval(),
    "Other sizes": classify(),
}
MODELS: dict[str, Callable[[], sl.Model]] = {
    "A unit": lambda: sl.load(classify(), size=64),
    "A pixel or a region of a segmentation": lambda: sl.load(
        DENSE, size=64, labels=["sky", "road", "car", "tree"]
    ),
    "A detection": lambda: sl.load(DETECTOR, size=64, labels=["none", "cat", "dog"]),
    "Several classes, or a score of your own": lambda: sl.load(classify(), size=64),
}


def read_examples() -> list[tuple[str, str]]:
    """The title above each Python block of the page, and the block."""
    examples: list[tuple[str, str]] = []
    title = ""
    for part in re.split(
        r"(^#+ [^\n]*$|^```python\n.*?^```$)", PAGE.read_text("utf-8"), flags=re.M | re.S
    ):
        if part.startswith("#"):
            title = part.lstrip("# ")
        elif part.startswith("```python"):
            examples.append((title, part.removeprefix("```python\n").removesuffix("```")))
    return examples


EXAMPLES = read_examples()


@pytest.mark.parametrize(("title", "code"), EXAMPLES, ids=[title for title, _ in EXAMPLES])
def test_the_example_runs(title: str, code: str) -> None:
    names: dict[str, Any] = {
        "sl": sl,
        "net": NETWORKS.get(title),
        "image": IMAGE,
        "other_image": OTHER_IMAGE,
        "bands_image": torch.rand(1, 5, 64, 64, generator=GENERATOR),
        "mask": torch.ones(64, 64),
    }
    if title in MODELS:
        names["model"] = MODELS[title]()
    exec(code, names)
    model = names["model"]
    fed = names["bands_image"] if title == "Other bands" else IMAGE[:, :, : model.image_size[0]]
    if title not in {"Other bands", "Another layout"}:
        assert model.logits(fed[..., : model.image_size[1]]).isfinite().all()


def test_every_kind_has_an_example() -> None:
    assert {title for title, _ in EXAMPLES} == {*NETWORKS, *MODELS}
