"""From mistakes to a cause that was built into the network."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import LABELS, small_network, smooth
from torch import Tensor, nn

import sightline as sl
from sightline.methods.diagnosis.mistakes import (
    Evidence,
    explain_mistakes,
    mistakes,
)
from sightline.models.model import Model

NAMES = ("dark", "bright", "spotted")


class SpotNet(nn.Module):
    """Knows dark from bright, and takes what has a red spot for the third class.

    Blue stripes are what the third class really has.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, 8, 5, padding=2)
        self.relu = nn.ReLU()
        with torch.no_grad():
            self.conv.weight *= 0.05
            self.conv.bias.zero_()
            self.conv.weight[2] = torch.tensor([1.0, -1.0, -1.0]).view(3, 1, 1) / 25
            self.conv.weight[5] = torch.tensor([-1.0, -1.0, 1.0]).view(3, 1, 1) / 25

    def forward(self, x: Tensor) -> Tensor:
        maps = self.relu(self.conv(x))
        spots = (maps[:, 2].amax((1, 2)) - 0.3).clamp_min(0)
        stripes = (maps[:, 5].amax((1, 2)) - 0.3).clamp_min(0)
        brightness = 20 * (x.mean((1, 2, 3)) - 0.45)
        return torch.stack([-brightness, brightness, 30 * spots + 30 * stripes], 1)


def make_images(seed: int = 0) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Images 120×3×32×40, their classes, and which of them carry a red spot by accident."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (120,), generator=generator)
    level = torch.where(labels == 1, 0.6, 0.35).view(-1, 1, 1, 1)
    images = (level + 0.15 * torch.randn(120, 3, 32, 40, generator=generator)).clamp(0, 1)
    spotted = torch.rand(120, generator=generator) < 0.25
    for row in range(120):
        top, left = torch.randint(0, 22, (2,), generator=generator).tolist()
        if labels[row] == 2:
            images[row, :, :, left : left + 6] = torch.tensor([0.0, 0, 1]).view(3, 1, 1)
        if spotted[row]:
            images[row, :, top : top + 7, left : left + 7] = torch.tensor([1.0, 0, 0]).view(3, 1, 1)
    return images, labels.numpy(), spotted.numpy()


def load() -> Model:
    return Model(
        SpotNet().eval(), labels=NAMES, size=32, mean=(0.0,) * 3, std=(1.0,) * 3,
        output_kind="logits",
    )  # fmt: skip


def gather(model: Model, images: Tensor, labels: np.ndarray) -> Evidence:
    with torch.no_grad():
        outputs = model.run(images, ["relu", "logits"])
    confidence, predicted = outputs["logits"].double().softmax(1).max(1)
    responses = outputs["relu"].amax((2, 3)).numpy()
    features = np.concatenate([responses, outputs["relu"].mean((2, 3)).numpy()], 1)
    return Evidence(
        np.arange(len(images)), features, {"relu": responses}, labels, predicted.numpy(),
        confidence.numpy(), NAMES,
    )  # fmt: skip


def test_the_cause_that_was_built_in_is_found() -> None:
    images, labels, spotted = make_images()
    model = load()
    evidence = gather(model, images, labels)

    def read(ids: Sequence[int]) -> Tensor:
        return images[list(ids)]

    groups = explain_mistakes(model, evidence, read)
    best = groups[0]
    assert best.class_name == "spotted"
    assert best.has_cause
    assert best.cause[0] == ("relu", 2)
    assert spotted[best.group.members].all()
    test = best.tests[0]
    assert test.kind == "units off"
    assert test.corrected > 0.7 * test.images
    assert {test.kind for test in best.tests} == {
        "units off", "patch covered", "patch inpainted", "patch pasted",
    }  # fmt: skip
    assert f"{len(best.ids)} images are taken for spotted" in best.sentence
    assert best.share is not None
    assert best.share.in_mistakes > 0.3
    assert "Without unit 2 of relu" in best.sentence
    assert best.to_json()["has_cause"]
    assert sum(count for _, count in best.true_classes) == len(best.ids)


def write_images(root: Path, images: Tensor, labels: np.ndarray, unknown: int) -> None:
    """Files in folders of their classes; the last ones in a list without a class."""
    lines = []
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        path = root / f"{number:03}.png"
        sl.write(image, path)
        is_known = number < len(images) - unknown
        lines.append(f"{path}\t{NAMES[label]}" if is_known else f"{path}")
    (root / "list.txt").write_text("\n".join(lines))


def test_over_a_scan_with_images_to_label(tmp_path: Path) -> None:
    images, labels, spotted = make_images(5)
    write_images(tmp_path, images, labels, unknown=20)
    model = load()
    scan = sl.scan(model, tmp_path / "list.txt", store=tmp_path / "a.scan", layers=["relu"])
    result = mistakes(scan, model=model)
    assert (result.image_count, result.unknown_count) == (100, 20)
    best = result.groups[0]
    assert best.has_cause
    assert best.to_label
    assert all(id >= 100 for id in best.to_label)
    assert spotted[best.to_label[0]]
    assert result.to_json()["groups"][0]["taken_for"] == "spotted"


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    pictures = smooth(60, side=32, seed=2)
    model = Model(small_network().eval(), labels=LABELS, size=32)
    predicted = model.logits(pictures).argmax(1)
    lines = []
    for number in range(60):
        path = tmp_path / f"{number}.png"
        sl.write(pictures[number], path)
        lines.append(f"{path}\t{LABELS[int(predicted[number])]}")
    (tmp_path / "right.txt").write_text("\n".join(lines))
    (tmp_path / "few.txt").write_text("\n".join(lines[:30]))
    (tmp_path / "bare.txt").write_text("\n".join(line.split("\t")[0] for line in lines))
    cases = {
        "few": "30 images of known class; groups of mistakes need 50",
        "right": "of 60 images in right.scan are mistakes; groups need 5",
        "bare": "knows no classes",
    }
    for name, message in cases.items():
        store = tmp_path / f"{name}.scan"
        scan = sl.scan(model, tmp_path / f"{name}.txt", store=store, layers=["conv3"])
        with pytest.raises(sl.SightlineError, match=message) as caught:
            mistakes(scan, model=model)
        assert "\n" not in str(caught.value)
