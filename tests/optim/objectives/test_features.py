"""Objectives in feature space against the same sums written out."""

import math

import pytest
import torch
from helpers import smooth
from torch import Tensor

import sightline as sl
from sightline.optim.objectives.parser import parse_objective


def value(model: sl.Model, objective: sl.Objective, image: Tensor) -> list[float]:
    found = model.run(image, [model.layer(name) for name in objective.layers])
    return objective.bind(model)(image, found).tolist()


def test_directions(tiny: sl.Model) -> None:
    image, vector = smooth(2), [0.5 - 0.1 * i for i in range(12)]
    maps = tiny.features(image, "conv2")["conv2"].double()
    for power in (0.0, 2.0):
        expected, cosines = [], []
        for picture in maps:
            terms = []
            for column in picture.flatten(1).T.tolist():
                dot = sum(a * b for a, b in zip(column, vector, strict=True))
                cos = dot / math.sqrt(sum(a * a for a in column) * sum(b * b for b in vector))
                terms.append((dot * max(0.1, cos) ** power, cos))
            expected.append(sum(term for term, _ in terms) / len(terms))
            cosines.append(sum(cos for _, cos in terms) / len(terms))
        assert value(tiny, sl.direction("conv2", tuple(vector), power), image) == pytest.approx(
            expected, rel=1e-4
        )
        assert value(tiny, sl.cosine("conv2", tuple(vector)), image) == pytest.approx(
            cosines, rel=1e-4
        )
    with pytest.raises(sl.SightlineError, match="the vector has 3 numbers; conv2 has 12 units"):
        value(tiny, sl.direction("conv2", (1.0, 2.0, 3.0)), image)


def test_content_is_zero_on_the_picture_and_minus_one_where_nothing_is_left(tiny: sl.Model) -> None:
    picture, other = smooth(), smooth(seed=1)
    assert value(tiny, sl.content("relu2", picture), picture) == [0]
    a, b = (tiny.features(image, "relu2")["relu2"].double() for image in (other, picture))
    expected = -float((a - b).square().sum() / b.square().sum())
    assert value(tiny, sl.content("relu2", picture), other) == pytest.approx([expected], rel=1e-4)
    dot, cos = (a * b).sum(1), torch.cosine_similarity(a, b, 1)
    own = value(tiny, sl.caricature("relu2", picture, 2.0), other)
    assert own == pytest.approx([float((dot * cos.clamp_min(0.1) ** 2).mean())], rel=1e-4)


def test_diversity_counts_the_others_of_a_group(tiny: sl.Model) -> None:
    image = torch.cat([smooth(), smooth(), smooth(2, seed=2)])
    maps = tiny.features(image, "conv2")["conv2"].flatten(2).double()
    grams = [(one @ one.T).flatten() for one in maps]
    alike = [[float(torch.cosine_similarity(a, b, 0)) for b in grams] for a in grams]
    assert value(tiny, sl.diversity("conv2"), image) == pytest.approx(
        [sum(row) - 1 for row in alike], rel=1e-4
    )
    assert value(tiny, sl.diversity("conv2", 2), image) == pytest.approx(
        [1.0, 1.0, alike[2][3], alike[2][3]], rel=1e-4
    )


@pytest.mark.parametrize("text", [
    "direction('conv2', (1.0, -2.5), 2.0) - 0.5 * diversity('conv2', 4)",
    "cosine('conv2', (0.25, 1e-07)) - 3 * roughness(1.0)",
    "content('conv2', 'rocket') + caricature('relu2', 'coffee', 1.0)",
    "channel('conv2', (3, 1)) - l1() - 2 * bounded(6.0)",
])  # fmt: skip
def test_its_text_is_the_objective(text: str) -> None:
    assert str(parse_objective(text)) == text
    assert parse_objective(str(parse_objective(text))) == parse_objective(text)


def test_each_image_has_its_unit(tiny: sl.Model) -> None:
    image = smooth(4)
    units = (3, 0)
    for make in (sl.channel, sl.neuron):
        found = value(tiny, make("conv2", units), image)
        expected = [
            value(tiny, make("conv2", units[i // 2]), image[i : i + 1])[0] for i in range(4)
        ]
        assert found == pytest.approx(expected, rel=1e-4), (
            "an equal share of the batch for each unit, one after the other"
        )
    assert value(tiny, sl.logit((4, 0, 1, 1)), image) == pytest.approx(
        [float(tiny.logits(image)[i, u]) for i, u in enumerate((4, 0, 1, 1))]
    )
    with pytest.raises(sl.SightlineError, match="3 units for 4 images"):
        value(tiny, sl.channel("conv2", (0, 1, 2)), image)
    with pytest.raises(sl.SightlineError, match="unit is 12; conv2 has units 0 to 11"):
        value(tiny, sl.channel("conv2", (0, 12)), image)


def test_penalties(tiny: sl.Model) -> None:
    image = smooth()
    offset = (image - 0.5).abs().double()
    assert value(tiny, sl.l1(), image) == pytest.approx([float(offset.mean())], rel=1e-5)
    assert value(tiny, sl.bounded(6.0), image) == pytest.approx(
        [float((offset**6).mean())], rel=1e-4
    )
    assert value(tiny, sl.roughness(1.0), torch.full((1, 3, 16, 16), 0.3)) == pytest.approx(
        [0], abs=1e-10
    )
    assert (
        value(tiny, sl.roughness(1.0), torch.rand(1, 3, 16, 16))[0]
        > value(tiny, sl.roughness(1.0), image)[0]
    )
