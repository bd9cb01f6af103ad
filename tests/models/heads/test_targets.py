"""Targets against plain autograd on the network itself."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.errors import SightlineError
from sightline.images.io.pictures import write
from sightline.methods.attribution.saliency import saliency
from sightline.models.heads.target_text import make_target, parse_target
from sightline.models.heads.targets import (
    Target,
    box,
    classes,
    pixel,
    region,
    regression,
    score,
    similar_to,
    unit,
)
from sightline.models.model import Model

GENERATOR = torch.Generator().manual_seed(5)
IMAGE = torch.rand(2, 3, 24, 36, generator=GENERATOR)
OTHER_IMAGE = torch.rand(1, 3, 24, 36, generator=GENERATOR)
MASK = torch.zeros(24, 36)
MASK[4:9, 20:33] = 1


class Dense(nn.Module):
    """Five classes at half of the image's resolution, and an auxiliary output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.features = nn.Conv2d(3, 7, 3, stride=2, padding=1)
        self.head = nn.Conv2d(7, 5, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.features(image).tanh()
        return {"aux": features, "out": self.head(features)}


class Classifier(nn.Module):
    """Four numbers from the mean of tanh features."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.features = nn.Conv2d(3, 7, 3, padding=1)
        self.head = nn.Linear(7, 4)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image).tanh().mean((2, 3)))


class Detector(nn.Module):
    """Two boxes for each image, with scores that depend on the image, as torchvision gives them."""

    num_classes = 4

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(8)
        self.scorer = nn.Conv2d(3, 2, 5)

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        detections: list[dict[str, Tensor]] = []
        for image in images:
            detections.append(
                {
                    "boxes": torch.tensor([[2.0, 3, 20, 20], [18.0, 4, 34, 22]]),
                    "labels": torch.tensor([1, 3]),
                    "scores": self.scorer(image[None]).mean((0, 2, 3)).sigmoid(),
                }
            )
        return detections


class Queries(nn.Module):
    """Three queries with four classes and «no object», and boxes as shares, as DETR gives them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(9)
        self.scorer = nn.Linear(3, 15)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        logits = self.scorer(image.square().mean((2, 3))).unflatten(1, (3, 5))
        boxes = torch.tensor([[0.2, 0.3, 0.2, 0.4], [0.7, 0.6, 0.3, 0.5], [0.5, 0.5, 1, 1]])
        return {"logits": logits, "pred_boxes": boxes.expand(len(image), -1, -1)}


def read_box_one(network: nn.Module, normalized: Tensor) -> Tensor:
    return torch.stack([item["scores"][1] for item in network(normalized)])


Oracle = Callable[[Any, Tensor], Tensor]

CASES: list[tuple[str, type[nn.Module], Any, Oracle]] = [
    ("pixel", Dense, pixel(9, 30, 2), lambda net, x: net(x)["out"][:, 2, 4, 15]),
    (
        "region",
        Dense,
        region(MASK, 3),
        lambda net, x: (
            (net(x)["out"][:, 3] * F.avg_pool2d(MASK[None], 2)).sum((1, 2))
            / F.avg_pool2d(MASK[None], 2).sum()
        ),
    ),
    ("unit", Dense, unit("features", 4), lambda net, x: net.features(x)[:, 4].mean((1, 2))),
    (
        "unit at a position",
        Dense,
        unit("features", 4, position=(3, 11)),
        lambda net, x: net.features(x)[:, 4, 3, 11],
    ),
    ("classes", Classifier, classes(3, 1), lambda net, x: net(x)[:, 3] + net(x)[:, 1]),
    ("regression", Classifier, regression(2), lambda net, x: net(x)[:, 2]),
    (
        "function",
        Dense,
        lambda output: output["aux"][:, 1].amax((1, 2)),
        lambda net, x: net(x)["aux"][:, 1].amax((1, 2)),
    ),
    ("box", Detector, box(17, 4, 34, 21), read_box_one),
    ("box with label", Detector, "box(10, 2, 34, 22, label=3)", read_box_one),
    ("queries", Queries, box(20, 8, 30, 20, 1), lambda net, x: net(x)["logits"][:, 1, 1]),
    (
        "queries of any class",
        Queries,
        box(20, 8, 30, 20),
        lambda net, x: net(x)["logits"][:, 1, :-1].amax(1),
    ),
]


@pytest.mark.parametrize(
    ("make_network", "target", "oracle"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)
def test_scores_and_gradients(make_network: type[nn.Module], target: Any, oracle: Oracle) -> None:
    network = make_network().eval()
    model = Model(network, size=(24, 36))
    leaf = IMAGE.clone().requires_grad_()
    expected = oracle(network, model.normalize(leaf))
    (gradient,) = torch.autograd.grad(expected.sum(), leaf)
    assert gradient.abs().max() > 0

    asked = model.with_target(target)
    torch.testing.assert_close(asked.logits(IMAGE)[:, 0], expected.detach())
    values = saliency(model, IMAGE, target=target).values
    torch.testing.assert_close(values["per_channel"], gradient, atol=1e-6, rtol=1e-5)
    assert values["label"].tolist() == [0, 0]


@pytest.mark.parametrize("layer", [None, "features"])
def test_similarity(layer: str | None) -> None:
    network = Classifier().eval()
    model = Model(network, size=(24, 36))

    def embed(image: Tensor) -> Tensor:
        normalized = model.normalize(image)
        return network(normalized) if layer is None else network.features(normalized).mean((2, 3))

    leaf = IMAGE.clone().requires_grad_()
    reference = embed(OTHER_IMAGE)[0].detach()
    vectors = embed(leaf)
    expected = (vectors @ reference) / (vectors.norm(dim=1) * reference.norm())
    (gradient,) = torch.autograd.grad(expected.sum(), leaf)
    target = similar_to(OTHER_IMAGE, layer=layer)
    values = saliency(model, IMAGE, target=target).values
    torch.testing.assert_close(values["per_channel"], gradient, atol=1e-6, rtol=1e-5)
    assert model.with_target(target).logits(OTHER_IMAGE).item() == pytest.approx(1, abs=1e-5)


def test_an_image_file_is_fitted_to_the_network(tmp_path: Path) -> None:
    model = Model(Classifier().eval(), size=(24, 36))
    write(torch.rand(1, 3, 50, 90, generator=GENERATOR), tmp_path / "other.png")
    by_path = model.with_target(f"similar_to({str(tmp_path / 'other.png')!r})")
    assert by_path.logits(IMAGE).shape == (2, 1)


def test_a_mask_may_be_an_array() -> None:
    model = Model(Dense().eval(), size=(24, 36))
    by_array = model.with_target(region(MASK.numpy(), 3)).logits(IMAGE)
    assert torch.equal(by_array, model.with_target(region(MASK, 3)).logits(IMAGE))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (pixel(3, 2, None), "label is None; give the number or the name of a class"),
        (pixel(3, 2, 1.5), "label is 1.5; give the number or the name of a class"),
        (region([[1, 0]], 1), "a region's mask is a tensor H×W or the path of a .*, not list"),
        (region(MASK.T, 1), "a region's mask is H×W, 24×36; this one is 36×24: give mask.T"),
        (unit("features", 1, position=3), r"position is 3; give \(row, column\)"),
        (unit("features", 1, position=(3, 1, 0)), r"position is \(3, 1, 0\); give"),
        (similar_to(255 * OTHER_IMAGE, layer="features"), r"an image in \[0, 1\]; this one is in"),
    ],
)
def test_what_is_no_target_is_told_in_one_line(target: Any, message: str) -> None:
    model = Model(Dense().eval(), size=(24, 36))
    with pytest.raises(SightlineError, match=message):
        model.with_target(target).logits(IMAGE)


class OneClass(Queries):
    """Three queries with one class, in an object."""

    def forward(self, image: Tensor) -> Any:
        output = super().forward(image)
        output["logits"] = output["logits"][..., 3:4]
        return SimpleNamespace(**output)


def test_queries_of_one_class_are_positions() -> None:
    network = OneClass().eval()
    model = Model(network, size=(24, 36), labels=["cat"])
    assert (model.output_kind, model.labels) == ("positions", ("cat",))
    scores = network(model.normalize(IMAGE)).logits
    torch.testing.assert_close(model.logits(IMAGE), scores.amax(1))
    for target in (box(20, 8, 30, 20), box(20, 8, 30, 20, "cat")):
        torch.testing.assert_close(model.with_target(target).logits(IMAGE), scores[:, 1])
    with pytest.raises(SightlineError, match="outside of the image"):
        model.with_target(box(40, 30, 50, 60)).logits(IMAGE)


def test_all_named_classes_of_queries_count() -> None:
    network = Queries().eval()
    named = Model(network, size=(24, 36), labels=list("abcde"))
    scores = network(named.normalize(IMAGE))["logits"][:, 1]
    asked = named.with_target(box(20, 8, 30, 20)).logits(IMAGE)
    torch.testing.assert_close(asked[:, 0], scores.amax(1))


def test_a_box_that_no_detection_overlaps_scores_zero() -> None:
    model = Model(Detector().eval(), size=(24, 36))
    assert model.with_target(box(0, 0, 3, 3)).logits(IMAGE).tolist() == [[0], [0]]
    assert model.with_target(box(17, 4, 34, 21, 1)).logits(IMAGE).tolist() == [[0], [0]]
    assert model.output_kind == "detections"
    best = model.logits(IMAGE)
    scores = torch.stack([item["scores"] for item in model.network(model.normalize(IMAGE))])
    torch.testing.assert_close(best[:, [1, 3]], scores)
    assert best[:, [0, 2]].abs().max() == 0


@pytest.mark.parametrize(
    "text",
    [
        "unit('features', 4)",
        "unit('features', 4, position=(3, 11))",
        "classes(3, 'cat')",
        "pixel(9, 30, 'cat')",
        "region('mask.png', 2)",
        "box(1, 2.5, 30, 40)",
        "box(1, 2.5, 30, 40, label='cat')",
        "similar_to('other.png')",
        "similar_to('other.png', layer='head')",
        "regression(2)",
    ],
)
def test_text_makes_the_target_again(text: str) -> None:
    assert str(parse_target(text)) == text


@pytest.mark.parametrize(
    ("network", "target", "message"),
    [
        (Classifier, pixel(1, 2, 3), r"gives logits, no scores for every place, so pixel\(...\)"),
        (Classifier, "region('mask.png', 0)", r"so region\(...\) can't be asked of it"),
        (Classifier, box(1, 2, 3, 4), r"Classifier gives no boxes, so box\(...\) can't be asked"),
        (Detector, box(5, 2, 3, 4), "the box is x 5 to 3, y 2 to 4; x0 must be below x1"),
        (Dense, pixel(1, 2, "cat"), "no label named 'cat'"),
        (Dense, pixel(24, 2, 1), "the pixel's row y is 24; it must lie between 0 and 23"),
        (Dense, region(torch.zeros(4, 5), 1), "this one marks no place"),
        (Dense, region(torch.ones(2, 4, 5), 1), r"a region's mask is H×W; this one is \(2, 4, 5\)"),
        (Dense, unit("feature", 1), "no layer named 'feature'; did you mean features"),
        (Dense, unit("features", 7), "the unit of features is 7; it must lie between 0 and 6"),
        (Dense, unit("features", 1, (0, 18)), "the column in features is 18; it must lie between"),
        (Classifier, classes(), r"classes\(\) names no class"),
        (Classifier, regression(4), "the index of the output is 4; it must lie between 0 and 3"),
        (Classifier, lambda output: output["out"], "the target's function fails on the network's"),
        (Classifier, lambda output: output, r"one number for each of 2 images; it gave \(2, 4\)"),
        (Classifier, lambda _output: "cat", "one number for each of 2 images; it gave str"),
        (Classifier, similar_to(IMAGE), r"takes one image 1×C×H×W; this one is \(2, 3, 24, 36\)"),
        (Classifier, "pixle(1, 2, 3)", "no target named 'pixle'; did you mean pixel"),
        (Classifier, "pixel(1, 2)", "missing 1 required positional argument: 'label'"),
        (Classifier, "pixel('1', 2, 3)", r"y is '1', not a number"),
        (Classifier, "unit(3, 2)", "layer is 3, not a text"),
        (Classifier, "pixel(1, 2, open('x'))", "a target is a call such as"),
        (Classifier, "cat", "target is 'cat'; a target is a call such as"),
        (Classifier, "(" * 5000, "a target is a call such as"),
    ],
)
def test_targets_that_can_not_be_asked(network: type[nn.Module], target: Any, message: str) -> None:
    model = Model(network().eval(), size=(24, 36))
    with pytest.raises(SightlineError, match=message):
        saliency(model, IMAGE, target=target)


def test_label_and_target_exclude_each_other() -> None:
    model = Model(Classifier().eval(), size=(24, 36))
    with pytest.raises(SightlineError, match="label is 2 and target is regression"):
        saliency(model, IMAGE, label=2, target=regression(1))
    assert model.with_target(None) is model


def test_the_recipe_holds_the_text() -> None:
    model = Model(Dense().eval(), size=(24, 36))
    recipe = saliency(model, IMAGE, target=pixel(9, 30, 2)).recipe
    assert recipe["knobs"]["target"] == "pixel(9, 30, 2)"
    assert isinstance(make_target("pixel(9, 30, 2)"), Target)
    assert str(score(len)) == "score(len)"


def test_landmarks_are_those_of_the_network() -> None:
    """The gradient of one pixel would reach one position of the last layer only."""
    expected = Model(Dense().eval(), size=(24, 36)).landmarks
    asked = Model(Dense().eval(), size=(24, 36)).with_target(pixel(9, 30, 2))
    assert asked.landmarks == expected
    assert expected["last_conv"] == "head"
