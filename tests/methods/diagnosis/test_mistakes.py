"""From mistakes to a cause that was built into the network."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import LABELS, small_network, smooth
from torch import Tensor, nn

import sightline as sl
from sightline.methods.diagnosis.causal_tests import CausalTest, ClassShare
from sightline.methods.diagnosis.error_groups import ErrorGroup
from sightline.methods.diagnosis.mistakes import (
    Evidence,
    MistakeGroup,
    compose_sentence,
    explain_mistakes,
    explain_no_group,
    find_surest_mistakes,
    mistakes,
    name_true_classes,
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
    region_count = len(best.group.region)
    assert f"{len(best.ids)} of {region_count} images taken for spotted" in best.sentence
    assert best.share is not None
    assert best.share.in_mistakes > 0.3
    assert best.share.others_broken == 0
    assert best.share.other_images > 20
    assert f"Without unit 2 of relu, {test.changed} of {test.images}" in best.sentence
    assert best.to_json({})["has_cause"]
    assert best.truth == tuple(NAMES[label] for label in labels[best.ids])
    assert dict(best.true_classes) == {name: best.truth.count(name) for name in set(best.truth)}
    counts = [count for _, count in best.true_classes]
    assert counts == sorted(counts, reverse=True)


def make_group(changed: int, share: ClassShare, **facts: int) -> MistakeGroup:
    """Nine mistakes of twelve images, of which so many answers change without unit 4 of conv3."""
    region_count = 12
    group = ErrorGroup(
        predicted=1,
        members=np.arange(9),
        region=np.arange(region_count),
        class_count=facts.get("class_count", region_count),
        error_share=0.75,
        expected_share=0.25,
        excess=4.0,
        p_value=0.01,
    )
    test = CausalTest("units off", 9, changed, 5, 0.4, 0.1, facts.get("percent", 2) / 100)
    return MistakeGroup(
        group=group,
        ids=np.arange(9),
        class_name="bright",
        truth=("dark",) * 9,
        true_classes=(("dark", 9),),
        cause=(("conv3", 4),),
        tests=(test,),
        share=share,
    )


def test_a_cause_is_passed_specific_and_counts_for_the_class() -> None:
    share = ClassShare(0.5, 0.4, 8, 3, 10, 1)
    assert make_group(6, share).has_cause
    assert not make_group(2, share).has_cause
    assert not make_group(6, share, percent=6).has_cause
    for in_mistakes, is_cause in ((0.31, True), (0.29, False)):
        counted = ClassShare(in_mistakes, 0.4, 8, 3, 10, 1)
        assert make_group(6, counted).has_cause == is_cause
    # Two thirds of the mistakes change: of the right answers for other classes at most one third.
    for others_broken, is_cause in ((3, True), (4, False)):
        counted = ClassShare(0.5, 0.4, 8, 3, 10, others_broken)
        assert make_group(6, counted).has_cause == is_cause
    assert make_group(6, ClassShare(0.5, 0.4, 8, 3, 0, 0)).has_cause


def test_the_sentence_says_what_was_counted() -> None:
    share = ClassShare(0.5, 0.4, 8, 3, 10, 1)
    assert compose_sentence(make_group(6, share)) == (
        "9 of 12 images taken for bright are wrong (9 dark); of images of other classes with "
        "such confidence 3 would be. Without unit 4 of conv3, 6 of 9 of the wrong answers change "
        "(0.4 without random units) and 5 are right then; 3 of 8 right answers for bright change, "
        "and 1 of 10 for other classes."
    )
    part = compose_sentence(make_group(6, share, class_count=20))
    assert "12 images taken for bright that lie together in feature space are wrong" in part
    counts = (("a", 5), ("b", 4), ("c", 3), ("d", 2), ("e", 1))
    assert name_true_classes(counts) == "5 a, 4 b, 3 c and 3 others"
    assert name_true_classes(counts[:2]) == "5 a and 4 b"


def test_why_there_is_no_group() -> None:
    labels = np.arange(20) % 3
    predicted = labels.copy()
    predicted[:7] = 2
    evidence = Evidence(
        np.arange(20), np.zeros((20, 2)), {}, labels, predicted, np.full(20, 0.7), NAMES
    )
    # Images 0, 1, 3, 4 and 6 are wrong.
    assert "of the 1 class that is predicted for 5 wrong images" in explain_no_group(evidence)
    fewer = replace(evidence, labels=np.where(np.arange(20) == 6, 2, labels))
    assert "no class is predicted for 5 wrong images or more" in explain_no_group(fewer)


def test_the_surest_wrong_answers_come_first() -> None:
    labels = np.array([0, 1, 2, 0, 1])
    predicted = np.array([0, 2, 1, 1, 1])
    confidence = np.array([0.99, 0.4, 0.8, 0.6, 0.95])
    ids = np.array([3, 10, 11, 14, 20])
    evidence = Evidence(ids, np.zeros((5, 2)), {}, labels, predicted, confidence, NAMES)
    surest = find_surest_mistakes(evidence)
    assert [(item.id, item.truth, item.answer) for item in surest] == [
        (11, NAMES[2], NAMES[1]),
        (14, NAMES[0], NAMES[1]),
        (10, NAMES[1], NAMES[2]),
    ]
    assert surest[0].caption == f"{NAMES[2]}, taken for {NAMES[1]}, 80% sure"


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

    wrong = np.flatnonzero(scan.top5[0][:100, 0].numpy() != labels[:100])
    assert {item.id for item in result.surest} <= set(wrong.tolist())
    assert len(result.surest) == min(24, len(wrong))
    confidences = [item.confidence for item in result.surest]
    assert confidences == sorted(confidences, reverse=True)
    assert result.to_json()["surest"][0]["answer"] == result.surest[0].answer


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
