"""What the output of a network means, found from its values and its last operation."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sightline.errors import SightlineError
from sightline.methods.attribution.saliency import saliency
from sightline.models.heads.recognition import HeadHints, recognize_output_head
from sightline.models.heads.targets import pixel, score
from sightline.models.model import Model


def make_classifier(classes: int, *last: nn.Module) -> nn.Sequential:
    """Convolution, ReLU, mean and a linear layer, with seeded weights."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, classes),
        *last,
    ).eval()


class Wrapped(nn.Module):
    """A convolution of four channels whose features a function turns into the output."""

    def __init__(self, finish: Callable[[Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.convolution = nn.Conv2d(3, 4, 3, stride=4)
        self.finish = finish

    def forward(self, image: Tensor) -> Any:
        return self.finish(self.convolution(image))


def unit_length(features: Tensor) -> Tensor:
    return nn.functional.normalize(features.mean((2, 3)), dim=1)


def queries(features: Tensor) -> Tensor:
    return features.flatten(2).transpose(1, 2)


@pytest.mark.parametrize(
    ("network", "kind", "count"),
    [
        (make_classifier(5), "logits", 5),
        (make_classifier(5, nn.LogSoftmax(1)), "logits", 5),
        (make_classifier(5, nn.Hardtanh(0, 1)), "logits", 5),
        (make_classifier(5, nn.Softmax(1)), "probabilities", 5),
        (make_classifier(2, nn.Softmax(1)), "probabilities", 2),
        (make_classifier(1), "binary", 2),
        (make_classifier(1, nn.Sigmoid()), "binary", 2),
        (make_classifier(4, nn.Sigmoid()), "multilabel", 4),
        (make_classifier(4, nn.Sigmoid(), nn.Unflatten(1, (4, 1, 1))), "multilabel", 4),
        (make_classifier(1, nn.Flatten(0)), "regression", 1),
        (Wrapped(unit_length), "embedding", 4),
        (Wrapped(lambda features: features), "dense", 4),
        (Wrapped(lambda features: features.softmax(1)), "dense", 4),
        (Wrapped(queries), "positions", 4),
        (Wrapped(lambda features: queries(features).transpose(0, 1)), "positions", 4),
        (Wrapped(lambda features: {"pooler_output": features.mean((2, 3))}), "embedding", 4),
    ],
)
def test_kinds(network: nn.Module, kind: str, count: int) -> None:
    model = Model(network, size=(20, 28))
    assert (model.output_kind, len(model.labels)) == (kind, count)


IMAGE = torch.rand(2, 3, 20, 28, generator=torch.Generator().manual_seed(1))


def test_probabilities_get_no_second_softmax() -> None:
    network = make_classifier(5, nn.Softmax(1))
    model = Model(network, size=20)
    expected = network(model.normalize(IMAGE))
    torch.testing.assert_close(model.probabilities(IMAGE), expected)
    torch.testing.assert_close(model.logits(IMAGE), expected.log())


@pytest.mark.parametrize("last", [(), (nn.Sigmoid(),)])
def test_one_score_is_for_no_and_yes(last: tuple[nn.Module, ...]) -> None:
    score = make_classifier(1)(Model(make_classifier(1), size=20).normalize(IMAGE))
    model = Model(make_classifier(1, *last), size=20)
    torch.testing.assert_close(model.logits(IMAGE), torch.cat([-score, score], 1))
    yes = 1 / (1 + (-score).exp())
    torch.testing.assert_close(model.probabilities(IMAGE), torch.cat([1 - yes, yes], 1))
    assert model.labels == ("no", "yes")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [(("defect",), ("not defect", "defect")), (("good", "bad"), ("good", "bad"))],
)
def test_names_of_no_and_yes(labels: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert Model(make_classifier(1), size=20, labels=labels).labels == expected


def test_labels_that_do_not_exclude_each_other() -> None:
    plain = make_classifier(4)
    scores = plain(Model(plain, size=20).normalize(IMAGE))
    for model in (
        Model(plain, size=20, output_kind="multilabel"),
        Model(make_classifier(4, nn.Sigmoid()), size=20),
    ):
        torch.testing.assert_close(model.probabilities(IMAGE), scores.sigmoid())
        torch.testing.assert_close(model.logits(IMAGE), scores)


def test_a_declared_regression_keeps_its_numbers() -> None:
    network = make_classifier(3)
    model = Model(network, size=20, output_kind="regression", unit="years")
    numbers = network(model.normalize(IMAGE))
    torch.testing.assert_close(model.logits(IMAGE), numbers)
    torch.testing.assert_close(model.probabilities(IMAGE), numbers)
    assert model.labels == ("output 0", "output 1", "output 2")
    assert "regression of 3 numbers in years" in repr(model)
    with pytest.raises(SightlineError, match="predictions needs classes; Sequential gives numbers"):
        model.require_classes("predictions")


def test_positions_give_the_best_score_of_each_class() -> None:
    network = Wrapped(queries)
    model = Model(network, size=(20, 28))
    output = network(model.normalize(IMAGE))
    expected = torch.stack([row.max(0).values for row in output])
    torch.testing.assert_close(model.logits(IMAGE), expected)
    turned = Model(Wrapped(lambda features: queries(features).transpose(0, 1)), size=(20, 28))
    torch.testing.assert_close(turned.logits(IMAGE), expected)
    by_class = Model(Wrapped(lambda features: features.flatten(2)), size=(20, 28), labels="abcd")
    torch.testing.assert_close(by_class.logits(IMAGE), expected)


def test_the_last_column_of_queries_is_no_object() -> None:
    model = Model(Wrapped(queries), size=(20, 28), labels=["cat", "dog", "bird"])
    assert model.labels == ("cat", "dog", "bird", "no object")


def test_features_without_scores_are_refused() -> None:
    model = Model(Wrapped(lambda features: {"last_hidden_state": queries(features)}), size=(20, 28))
    with pytest.raises(SightlineError, match=r"gives features \(35, 4\) and no scores; pick"):
        model.logits(IMAGE)
    volume = Model(Wrapped(lambda features: features[:, :, None]), size=(20, 28))
    with pytest.raises(SightlineError, match="gives an output of 5 axes"):
        volume.logits(IMAGE)


@pytest.mark.parametrize("name", ["pred_logits", "class_queries_logits", "probs", "predictions"])
def test_scores_beside_features_are_scores(name: str) -> None:
    def finish(features: Tensor) -> dict[str, Tensor]:
        return {"last_hidden_state": queries(features), name: features.mean((2, 3))}

    model = Model(Wrapped(finish), size=(20, 28))
    assert (model.output_kind, len(model.labels)) == ("logits", 4)

    def finish_queries(features: Tensor) -> dict[str, Tensor]:
        return {"last_hidden_state": features.mean((2, 3)), name: queries(features)}

    model = Model(Wrapped(finish_queries), size=(20, 28))
    assert (model.output_kind, len(model.labels)) == ("positions", 4)


def enlarge(features: Tensor) -> Tensor:
    """To the size of the image."""
    return nn.functional.interpolate(features, IMAGE.shape[2:])


@pytest.mark.parametrize(
    ("finish", "count", "read"),
    [
        (lambda x: enlarge(x).movedim(1, 3), 4, lambda y: y.mean((1, 2))),
        (lambda x: enlarge(x)[:, 2], 1, lambda y: y.mean((1, 2))[:, None]),
        (lambda x: enlarge(x)[:, :1].squeeze(), 1, lambda y: y.mean((1, 2))[:, None]),
        (lambda x: (3 * enlarge(x)).softmax(1).movedim(1, 3), 4, lambda y: y.mean((1, 2)).log()),
    ],
    ids=["classes last", "no classes", "squeezed", "probabilities last"],
)
def test_a_score_at_each_pixel_in_other_orders(
    finish: Callable[[Tensor], Tensor], count: int, read: Callable[[Tensor], Tensor]
) -> None:
    network = Wrapped(finish).eval()
    model = Model(network, size=(20, 28))
    assert (model.output_kind, len(model.labels)) == ("dense", count)
    expected = read(network(model.normalize(IMAGE)))
    torch.testing.assert_close(model.logits(IMAGE), expected)
    torch.testing.assert_close(model.logits(IMAGE[1:]), expected[1:])
    asked = model.with_target(pixel(7, 20, count - 1)).logits(IMAGE)
    maps = model.network(model.normalize(IMAGE))
    by_pixel = maps[:, 7, 20, count - 1] if maps.ndim == 4 else maps[:, 7, 20]
    torch.testing.assert_close(asked[:, 0], by_pixel)


@pytest.mark.parametrize(
    ("network", "kind"),
    [
        (make_classifier(5), "logits"),
        (make_classifier(1), "regression"),
        (Wrapped(lambda features: features), "dense"),
        (Wrapped(queries), "positions"),
        (Wrapped(lambda features: queries(features).transpose(0, 1)), "positions"),
    ],
    ids=["classes", "number", "dense", "positions", "time first"],
)
def test_one_image_may_lose_its_axis(network: nn.Module, kind: str) -> None:
    """`squeeze()` takes the axis of the images where there is one image."""
    plain = Model(network, size=(20, 28))
    squeezed = Model(Squeezed(network).eval(), size=(20, 28))
    assert squeezed.output_kind == kind
    assert not squeezed.findings.notes
    expected = plain.logits(IMAGE)[:, -1:] if kind == "regression" else plain.logits(IMAGE)
    torch.testing.assert_close(squeezed.logits(IMAGE), expected)
    torch.testing.assert_close(squeezed.logits(IMAGE[:1]), expected[:1])
    gradient = saliency(squeezed, IMAGE[:1], label=0 if kind == "regression" else 2)
    assert gradient.values["gradient"].abs().max() > 0


class Squeezed(nn.Module):
    """A network whose output loses the axes of length 1."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Any:
        return self.network(image).squeeze()


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (Wrapped(lambda features: features.mean((2, 3)).T), "4×2"),
        (Wrapped(lambda features: features.mean((0, 2, 3))), "4"),
        (Wrapped(lambda features: features.repeat_interleave(3, 0)), "6×4×5×7"),
    ],
    ids=["classes first", "one answer", "crops"],
)
def test_an_output_without_an_axis_of_images_is_refused(network: nn.Module, shape: str) -> None:
    model = Model(network.eval(), size=(20, 28))
    with pytest.raises(SightlineError, match=f"gives an output of {shape} for 2 images"):
        model.logits(IMAGE)
    target = score(lambda output: output.flatten()[: len(IMAGE)])
    assert model.with_target(target).logits(IMAGE).shape == (2, 1)


def test_two_members_of_an_ensemble_are_no_images() -> None:
    members = Wrapped(lambda features: torch.stack([features.mean((2, 3)), features.amax((2, 3))]))
    model = Model(members.eval(), size=(20, 28))
    assert (model.output_kind, len(model.labels)) == ("positions", 4)
    expected = members(model.normalize(IMAGE)).amax(0)
    torch.testing.assert_close(model.logits(IMAGE), expected)
    torch.testing.assert_close(model.logits(IMAGE[1:]), expected[1:])


@pytest.mark.parametrize(
    ("finish", "kind"),
    [
        (lambda y: y[:, :1].sigmoid().clamp(1e-6, 1 - 1e-6), "binary"),
        (lambda y: y[:, :2].softmax(1)[:, 1:], "binary"),
        (lambda y: y[:, :2].softmax(1)[:, 1], "binary"),
        (lambda y: (y.sigmoid() + (2 * y).sigmoid()) / 2, "multilabel"),
        (lambda y: (1 - y.sigmoid()).cumprod(1), "multilabel"),
    ],
    ids=["limited", "share of two", "share of two as a number", "two members", "survival"],
)
def test_combined_probabilities_get_no_second_sigmoid(
    finish: Callable[[Tensor], Tensor], kind: str
) -> None:
    network = Wrapped(lambda features: finish(5 * features.mean((2, 3)))).eval()
    model = Model(network, size=(20, 28))
    assert model.output_kind == kind
    expected = network(model.normalize(IMAGE))
    if expected.ndim == 1:
        expected = expected[:, None]
    if kind == "binary":
        expected = torch.cat([1 - expected, expected], 1)
    torch.testing.assert_close(model.probabilities(IMAGE), expected)
    torch.testing.assert_close(model.logits(IMAGE), torch.logit(expected))


@pytest.mark.parametrize(
    ("options", "finish", "read"),
    [
        ({}, lambda y: y.sigmoid(), lambda y: y.mean((2, 3))),
        ({}, lambda y: y[:, :1].sigmoid(), lambda y: y.mean((2, 3))),
        ({}, lambda y: y[:, :1], lambda y: y.mean((2, 3))),
        ({"labels": ["road"]}, lambda y: y[:, :1], lambda y: y.mean((2, 3)).sigmoid()),
        ({"output_kind": "multilabel"}, lambda y: y, lambda y: y.mean((2, 3)).sigmoid()),
        ({"output_kind": "regression"}, lambda y: y, lambda y: y.mean((2, 3))),
        ({}, lambda y: y, lambda y: y.mean((2, 3)).softmax(1)),
        ({}, lambda y: queries(y).sigmoid(), lambda y: y.amax(1)),
    ],
    ids=["masks", "mask", "depth", "named", "multilabel", "regression", "classes", "queries"],
)
def test_probabilities_of_places(
    options: dict[str, Any],
    finish: Callable[[Tensor], Tensor],
    read: Callable[[Tensor], Tensor],
) -> None:
    """A sigmoid at every place gets no softmax, and a depth is no share."""
    network = Wrapped(lambda features: finish(3 * features)).eval()
    model = Model(network, size=(20, 28), **options)
    assert model.output_kind in ("dense", "positions")
    expected = read(network(model.normalize(IMAGE)))
    torch.testing.assert_close(model.probabilities(IMAGE), expected)


@pytest.mark.parametrize(
    ("order", "index"), [((0, 2, 1), "[:, :, 4:]"), ((0, 1, 2), "[:, 4:]")], ids=["last", "first"]
)
def test_boxes_before_scores_are_told(order: tuple[int, int, int], index: str) -> None:
    def finish(features: Tensor) -> Tensor:
        rows = features.flatten(2)
        scores = torch.cat([rows, rows[:, :2]], 1).sigmoid()
        return torch.cat([20 * rows.exp(), scores], 1).permute(order)

    model = Model(Wrapped(finish).eval(), size=(20, 28))
    with pytest.raises(SightlineError, match="the four numbers of a box before the sc") as caught:
        model.logits(IMAGE)
    assert f"output{index}.amax((1, 2))" in str(caught.value)
    assert model.with_target(lambda output: output.amax((1, 2))).logits(IMAGE).shape == (2, 1)


@pytest.mark.parametrize("name", ["reconstruction", "sample", "flow"])
def test_images_and_motions_are_no_classes(name: str) -> None:
    def finish(features: Tensor) -> dict[str, Any]:
        return {name: features, "hidden_states": None}

    model = Model(Wrapped(finish).eval(), size=(20, 28))
    assert model.gives_numbers
    assert model.labels[1] == "output 1"
    assert torch.equal(model.probabilities(IMAGE), model.logits(IMAGE))
    named = Model(Wrapped(finish).eval(), size=(20, 28), labels=["a", "b", "c", "d"])
    assert not named.gives_numbers
    beside = Wrapped(lambda features: {name: features.exp(), "logits": features}).eval()
    assert not Model(beside, size=(20, 28)).gives_numbers


class TinyForSemanticSegmentation(Wrapped):
    """A network that says what it does."""


def test_a_mask_without_a_sigmoid_is_no_depth() -> None:
    network = TinyForSemanticSegmentation(lambda features: features[:, 1:2]).eval()
    model = Model(network, size=(20, 28))
    assert not model.gives_numbers
    expected = network(model.normalize(IMAGE)).mean((2, 3)).sigmoid()
    torch.testing.assert_close(model.probabilities(IMAGE), expected)


def test_queries_without_no_object_have_a_sigmoid_for_each_class() -> None:
    def finish(features: Tensor) -> dict[str, Tensor]:
        scores = queries(features)
        return {"logits": scores, "pred_boxes": scores.sigmoid()}

    network = Wrapped(finish).eval()
    all_named = Model(network, size=(20, 28), labels=["a", "b", "c", "d"])
    best = network(all_named.normalize(IMAGE))["logits"].amax(1)
    torch.testing.assert_close(all_named.probabilities(IMAGE), best.sigmoid())
    with_no_object = Model(network, size=(20, 28), labels=["a", "b", "c"])
    torch.testing.assert_close(with_no_object.probabilities(IMAGE), best.softmax(1))


def test_numbers_at_places_are_no_classes() -> None:
    model = Model(Wrapped(lambda y: y[:, :1].exp()), size=20, output_kind="regression", unit="m")
    assert "dense of 1 number in m" in repr(model)
    with pytest.raises(SightlineError, match=r"an attack needs classes; .* numbers at every place"):
        model.require_classes("an attack")


def test_maps_may_be_declared_an_embedding() -> None:
    assert Model(Wrapped(lambda y: y), size=20, output_kind="embedding").output_kind == "embedding"


@pytest.mark.parametrize(
    "finish",
    [
        lambda features: features.mean((2, 3)).argmax(1),
        lambda features: enlarge(features).argmax(1),
        lambda features: enlarge(features).argmax(1, keepdim=True),
        lambda features: features.mean((2, 3))[:, :1] > 0,
    ],
    ids=["class", "class of each pixel", "map of classes", "yes or no"],
)
def test_chosen_classes_are_no_scores(finish: Callable[[Tensor], Tensor]) -> None:
    model = Model(Wrapped(finish).eval(), size=(20, 28))
    with pytest.raises(SightlineError, match=r"Wrapped gives whole numbers \((int64|bool)\)"):
        model.logits(IMAGE)


def test_scores_may_be_whole_numbers() -> None:
    network = Wrapped(lambda features: (9 * features.mean((2, 3))).round().long())
    model = Model(network.eval(), size=(20, 28))
    scores = network(model.normalize(IMAGE))
    assert torch.equal(model.logits(IMAGE), scores.float())
    assert torch.allclose(model.probabilities(IMAGE).sum(1), torch.ones(2))


def test_feature_maps_are_no_classes() -> None:
    """As backbones of Hugging Face give them."""
    model = Model(Wrapped(lambda features: {"feature_maps": (features, features + 1)}), size=20)
    assert model.output_kind == "embedding"
    image = torch.rand(2, 3, 20, 20)
    expected = model.network(model.normalize(image))["feature_maps"][0].mean((2, 3))
    torch.testing.assert_close(model.logits(image), expected)


def test_feature_maps_of_several_sizes_are_refused() -> None:
    def make_pyramid(features: Tensor) -> dict[str, tuple[Tensor, ...]]:
        halved = nn.functional.avg_pool2d(features, 2)
        return {"feature_maps": (features.repeat(1, 2, 1, 1), features[..., :3, :3], halved)}

    model = Model(Wrapped(make_pyramid), size=20)
    message = "output='feature_maps.0' to 'feature_maps.2'"
    with pytest.raises(SightlineError, match=f"features at 3 sizes and no scores.*{message}"):
        model.logits(torch.rand(1, 3, 20, 20))
    one = Model(Wrapped(make_pyramid), size=20, output="feature_maps.2")
    assert one.output_kind == "embedding"
    assert one.logits(torch.rand(1, 3, 20, 20)).shape == (1, 4)


def test_an_array_is_no_tensor() -> None:
    model = Model(Wrapped(lambda features: features.detach().mean((2, 3)).numpy()), size=20)
    with pytest.raises(SightlineError, match=r"returns a NumPy array.*let it return the tensor"):
        model.logits(torch.rand(1, 3, 20, 20))


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("classes", [2, 3, 7, 40])
def test_half_precision_rounds_sums(classes: int, precision: torch.dtype) -> None:
    """Probabilities in bfloat16 sum to 1 ± 0.003, and unit vectors have a length of 1 ± 0.006."""
    hints = HeadHints(nn.Identity(), None, None, (), "", "a network", is_squashed=True)
    generator = torch.Generator().manual_seed(classes)
    for spread in (0.3, 1.0, 4.0):
        scores = spread * torch.randn(200, classes, generator=generator)
        head = recognize_output_head(scores.to(precision).softmax(1), len(scores), hints)
        assert head.kind == "probabilities"
        vectors = nn.functional.normalize(scores, dim=1).to(precision)
        plain = replace(hints, is_squashed=False)
        assert recognize_output_head(vectors, len(scores), plain).kind == "embedding"
        labels = recognize_output_head(scores.to(precision).sigmoid(), len(scores), hints)
        assert labels.kind == "multilabel"


def test_a_network_in_half_precision_ends_in_a_softmax() -> None:
    network = make_classifier(3, nn.Softmax(1)).bfloat16()
    model = Model(network, size=8, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert model.output_kind == "probabilities"
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    expected = network(images.bfloat16()).float()
    torch.testing.assert_close(model.probabilities(images).float(), expected, atol=1e-2, rtol=0)
