"""Objectives in feature space against the same sums written out."""

import math
from collections.abc import Callable

import pytest
import torch
from helpers import smooth
from torch import Tensor

import sightline as sl

VECTOR = tuple(0.5 - 0.1 * index for index in range(12))


def make_image(count: int = 1, seed: int = 0) -> Tensor:
    """Smooth images of 32×44 pixels."""
    return smooth(count, 44, seed)[..., :32, :]


def compute_scores(model: sl.Model, objective: sl.Objective, image: Tensor) -> list[float]:
    features = model.run(image, [model.layer(name) for name in objective.layers])
    return objective.bind(model)(image, features).tolist()


def list_positions(features: Tensor) -> list[list[float]]:
    """The vector of units at every position of units×rows×columns."""
    return features.double().flatten(1).T.tolist()


def compute_dot(a: list[float] | tuple[float, ...], b: list[float] | tuple[float, ...]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def compute_cosine(a: list[float], b: list[float] | tuple[float, ...]) -> float:
    return compute_dot(a, b) / math.sqrt(compute_dot(a, a) * compute_dot(b, b))


def average(values: list[float]) -> float:
    return sum(values) / len(values)


@pytest.mark.parametrize("power", [0.0, 2.0])
def test_direction_is_the_mean_dot_product_weighted_by_the_cosine(
    tiny: sl.Model, power: float
) -> None:
    image = make_image(2)
    expected: list[float] = []
    for features in tiny.features(image, "conv2")["conv2"]:
        terms = [
            compute_dot(position, VECTOR) * max(0.1, compute_cosine(position, VECTOR)) ** power
            for position in list_positions(features)
        ]
        expected.append(average(terms))
    scores = compute_scores(tiny, sl.direction("conv2", VECTOR, power), image)
    assert scores == pytest.approx(expected, rel=1e-4)


def test_cosine_is_the_mean_over_positions(tiny: sl.Model) -> None:
    image = make_image(2)
    expected = [
        average([compute_cosine(position, VECTOR) for position in list_positions(features)])
        for features in tiny.features(image, "conv2")["conv2"]
    ]
    scores = compute_scores(tiny, sl.cosine("conv2", VECTOR), image)
    assert scores == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("make_objective", [sl.direction, sl.cosine])
def test_a_vector_has_a_number_for_each_unit(tiny: sl.Model, make_objective: Callable) -> None:
    with pytest.raises(sl.SightlineError, match="the vector has 3 numbers; conv2 has 12 units"):
        compute_scores(tiny, make_objective("conv2", (1.0, 2.0, 3.0)), make_image())


def test_a_vector_may_be_a_tensor(tiny: sl.Model) -> None:
    assert sl.cosine("conv2", torch.tensor([0.5, -2.0])) == sl.cosine("conv2", (0.5, -2.0))


def test_content_is_the_relative_distance_to_a_picture(tiny: sl.Model) -> None:
    picture = make_image()
    images = torch.cat([make_image(seed=1), picture])
    target = tiny.features(picture, "relu2")["relu2"].double()
    features = tiny.features(images, "relu2")["relu2"].double()
    expected = -(features - target).square().sum((1, 2, 3)) / target.square().sum()
    scores = compute_scores(tiny, sl.content("relu2", picture), images)
    assert scores == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-9)
    # Some processors round a batch's images otherwise than a single image.
    assert scores[1] == pytest.approx(0, abs=1e-9)


def test_a_picture_is_compared_at_the_images_size(tiny: sl.Model) -> None:
    picture = make_image(seed=2)
    image = make_image()[..., :20, :]
    resized = torch.nn.functional.interpolate(
        picture, size=(20, 44), mode="bilinear", antialias=True
    )
    (score,) = compute_scores(tiny, sl.content("relu2", picture), image)
    (expected,) = compute_scores(tiny, sl.content("relu2", resized), image)
    assert score == pytest.approx(expected, rel=0.02)


def test_caricature_is_the_weighted_dot_product_with_a_picture(tiny: sl.Model) -> None:
    picture = make_image()
    image = make_image(seed=1)
    target = tiny.features(picture, "relu2")["relu2"].double()
    features = tiny.features(image, "relu2")["relu2"].double()
    dot = (features * target).sum(1)
    cosine = torch.cosine_similarity(features, target, 1)
    expected = float((dot * cosine.clamp_min(0.1) ** 2).mean())
    scores = compute_scores(tiny, sl.caricature("relu2", picture, 2.0), image)
    assert scores == pytest.approx([expected], rel=1e-4)


def test_diversity_counts_the_other_images_of_a_group(tiny: sl.Model) -> None:
    image = torch.cat([make_image(), make_image(), make_image(2, seed=2)])
    maps = tiny.features(image, "conv2")["conv2"].flatten(2).double()
    grams = [(rows @ rows.T).flatten().tolist() for rows in maps]
    cosines = [[compute_cosine(gram, neighbour) for neighbour in grams] for gram in grams]
    scores = compute_scores(tiny, sl.diversity("conv2"), image)
    assert scores == pytest.approx([sum(row) - 1 for row in cosines], rel=1e-4)
    pair_scores = compute_scores(tiny, sl.diversity("conv2", 2), image)
    expected = [1.0, 1.0, cosines[2][3], cosines[2][3]]
    assert pair_scores == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("make_objective", [sl.channel, sl.neuron])
def test_units_have_equal_shares_of_the_batch(tiny: sl.Model, make_objective: Callable) -> None:
    image = make_image(4)
    units = (3, 0)
    expected: list[float] = []
    for index in range(4):
        objective = make_objective("conv2", units[index // 2])
        expected += compute_scores(tiny, objective, image[index : index + 1])
    scores = compute_scores(tiny, make_objective("conv2", units), image)
    assert scores == pytest.approx(expected, rel=1e-4)


def test_each_image_has_its_class(tiny: sl.Model) -> None:
    image = make_image(4)
    classes = (4, 0, 1, 1)
    logits = tiny.logits(image)
    expected = [float(logits[index, label]) for index, label in enumerate(classes)]
    assert compute_scores(tiny, sl.logit(classes), image) == pytest.approx(expected)


def test_units_that_do_not_fit_are_refused(tiny: sl.Model) -> None:
    with pytest.raises(sl.SightlineError, match="3 units for 4 images"):
        compute_scores(tiny, sl.channel("conv2", (0, 1, 2)), make_image(4))
    with pytest.raises(sl.SightlineError, match="unit is 12; conv2 has units 0 to 11"):
        compute_scores(tiny, sl.channel("conv2", (0, 12)), make_image(4))
