"""Names of known units: detectors of colours, set by hand, on images of coloured squares."""

from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sightline as sl
from sightline.methods.units.naming import names as names_module
from sightline.methods.units.naming.concepts import ConceptTable
from sightline.methods.units.naming.names import UnitName, name_responses, name_units
from sightline.methods.units.naming.scores import make_label_matrix, score_concepts

IMAGES, HEIGHT, WIDTH = 160, 20, 28
CORNERS = list(product((0.0, 1.0), repeat=3))
COLORS = ["black", "blue", "green", "cyan", "red", "magenta", "yellow", "white"]
PAIRS = ((4, 1), (6, 3), (0, 7))  # colours that the units after the first eight fire for


def make_images() -> tuple[Tensor, Any]:
    """Noisy gray images with squares of up to three colours, and which colours each has."""
    generator = torch.Generator().manual_seed(0)
    images = 0.5 + 0.08 * torch.randn(IMAGES, 3, HEIGHT, WIDTH, generator=generator)
    labels = np.zeros((IMAGES, len(COLORS)), dtype=bool)
    for number in range(IMAGES):
        colors = torch.randperm(len(COLORS), generator=generator)[: number % 4]
        for place, color in enumerate(colors.tolist()):
            columns = slice(9 * place + 1, 9 * place + 8)
            rows = slice(5 + place, 10 + place)
            images[number, :, rows, columns] = torch.tensor(CORNERS[color])[:, None, None]
            labels[number, color] = True
    return images.clamp(0, 1), labels


def make_network() -> nn.Sequential:
    """Eight units for a colour each, three for one of two colours, and a dead one."""
    units = len(COLORS)
    first = nn.Conv2d(3, units, 1)
    second = nn.Conv2d(units, units + len(PAIRS) + 1, 1)
    with torch.no_grad():
        for unit, corner in enumerate(CORNERS):
            first.weight[unit, :, 0, 0] = 2 * torch.tensor(corner) - 1
            first.bias[unit] = 0.6 - sum(corner)  # type: ignore[index]
        second.weight.zero_()
        second.bias.zero_()  # type: ignore[union-attr]
        for unit in range(units):
            second.weight[unit, unit] = 1
        for number, pair in enumerate(PAIRS):
            second.weight[units + number, list(pair)] = 1
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten())


@pytest.fixture(scope="module")
def planted() -> tuple[Any, ConceptTable]:
    """The responses of the known units, images×units, and the colours as concepts."""
    images, labels = make_images()
    with torch.no_grad():
        responses = make_network()(images).numpy().astype(np.float16)
    return responses, ConceptTable(COLORS, make_label_matrix(labels))


def list_texts(names: list[UnitName | None]) -> list[str | None]:
    """The texts of names."""
    return [name.text if name else None for name in names]


def test_known_units_get_their_names(planted: tuple[Any, ConceptTable]) -> None:
    responses, concepts = planted
    names = name_responses(responses, concepts)
    assert list_texts(names[: len(COLORS)]) == COLORS
    assert names[-1] is None, "a dead unit has no name"


def test_units_of_two_colours_get_a_formula(planted: tuple[Any, ConceptTable]) -> None:
    responses, concepts = planted
    names = name_responses(responses, concepts, formulas=True)
    assert list_texts(names[: len(COLORS)]) == COLORS, "one concept is enough for them"
    for (first, second), text in zip(PAIRS, list_texts(names[len(COLORS) : -1]), strict=True):
        pair = (COLORS[first], COLORS[second])
        assert text in (" or ".join(pair), " or ".join(pair[::-1]))


def test_the_numbers_of_a_name(planted: tuple[Any, ConceptTable]) -> None:
    responses, concepts = planted
    name = name_responses(responses, concepts)[4]
    assert name is not None
    count = len(concepts.get_images(4))
    assert name.count == count
    assert name.chance == pytest.approx(count / IMAGES)
    assert name.auprc == pytest.approx(1)
    expected = np.corrcoef(responses[:, 4], concepts.labels.toarray()[:, 4])[0, 1]
    assert name.correlation == pytest.approx(expected, abs=1e-6)
    labels = concepts.labels.toarray()
    scores = score_concepts(responses, labels)
    assert name.chance_correlation == pytest.approx(scores.chance_correlation[4], abs=1e-6)
    assert name.correlation_limit == pytest.approx(scores.correlation_limit[4], abs=1e-6)
    assert name.missing.auprc == pytest.approx(0.5, abs=0.02)
    assert name.passes_missing_label
    assert name.passes_extra_label
    assert name.to_row()["name"] == "red"
    assert name.to_row()["auprc_chance"] == name.chance


def test_units_that_fire_at_random_get_no_name(planted: tuple[Any, ConceptTable]) -> None:
    _, concepts = planted
    generator = np.random.default_rng(7)
    responses = generator.normal(size=(IMAGES, 200)).astype(np.float16)
    for formulas in (False, True):
        names = name_responses(responses, concepts, formulas=formulas)
        assert sum(name is not None for name in names) <= 10


def test_labels_of_other_images_give_no_names(planted: tuple[Any, ConceptTable]) -> None:
    responses, concepts = planted
    order = np.random.default_rng(0).permutation(IMAGES)
    names = name_responses(responses[order], concepts)
    assert sum(name is not None for name in names) <= 1


def test_a_name_that_fails_a_check_is_not_given(
    planted: tuple[Any, ConceptTable], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With spoiled labels that are the labels themselves nothing falls."""
    responses, concepts = planted
    for test in ("missing", "extra"):
        spoil = names_module.spoil_labels

        def keep(images: Any, count: int, seed: int, test: str = test, spoil: Any = spoil) -> Any:
            labels = spoil(images, count, seed)
            return type(labels)(**{**vars(labels), test: [images]})

        monkeypatch.setattr(names_module, "spoil_labels", keep)
        assert list_texts(name_responses(responses, concepts)) == [None] * responses.shape[1]
        monkeypatch.undo()


def test_the_next_concept_is_tried_where_the_best_fails() -> None:
    """Half of all images in a concept that is much too broad, and the right one beside it."""
    generator = np.random.default_rng(0)
    responses = generator.normal(size=(200, 1))
    responses[:8] += 4
    labels = np.zeros((200, 2), dtype=bool)
    labels[:100, 0] = True
    labels[:8, 1] = True
    table = ConceptTable(["broad", "right"], make_label_matrix(labels))
    assert list_texts(name_responses(responses, table)) == ["right"]
    broad = ConceptTable(["broad"], make_label_matrix(labels[:, :1]))
    assert list_texts(name_responses(responses, broad)) == [None]


def test_concepts_of_too_few_images_name_nothing(planted: tuple[Any, ConceptTable]) -> None:
    responses, concepts = planted
    largest = int(concepts.counts.max())
    assert (
        list_texts(name_responses(responses, concepts, min_images=largest + 1))
        == [None] * responses.shape[1]
    )


def test_many_blocks_give_the_same_names(
    planted: tuple[Any, ConceptTable], monkeypatch: pytest.MonkeyPatch
) -> None:
    responses, concepts = planted
    whole = name_responses(responses, concepts)
    module = "sightline.methods.units.naming.scores.MAX_BLOCK_NUMBERS"
    monkeypatch.setattr(module, 5 * IMAGES)
    pieces = name_responses(responses, concepts)
    assert list_texts(pieces) == list_texts(whole)
    for piece, name in zip(pieces, whole, strict=True):
        if piece and name:
            assert piece.to_row() == pytest.approx(name.to_row())


def test_units_of_a_scan_are_named_after_its_classes() -> None:
    generator = np.random.default_rng(0)
    classes = torch.tensor([0] * 30 + [1] * 20 + [2] * 10)
    responses = generator.random((60, 3))
    responses[:30, 1] += 2
    responses[50:, 0] += 2
    asked: list[str] = []

    def read_responses(layer: str) -> Any:
        asked.append(layer)
        return responses.astype(np.float16)

    scan: Any = SimpleNamespace(
        images=60,
        classes=classes,
        class_names=["ant", "bee", "cat"],
        shown_class_names=["ant", "bee", "cat"],
        model_labels=[],
        responses=read_responses,
    )
    assert list_texts(name_units(scan, "conv2")) == ["cat", "ant", None]
    assert asked == ["conv2"]
    other = ConceptTable(["odd"], make_label_matrix(responses[:, :1] > 2))
    assert list_texts(name_units(scan, "conv2", other)) == ["odd", None, None]


def test_two_scans_of_images_do_not_mix(planted: tuple[Any, ConceptTable]) -> None:
    responses, concepts = planted
    with pytest.raises(sl.SightlineError, match="both must be of the same ones"):
        name_responses(responses[1:], concepts)


def test_of_many_images_a_random_part_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names_module, "MAX_NAMED_IMAGES", 50)
    labels = np.arange(80)[:, None] % 3 == 0
    responses = labels + 0.01 * np.random.default_rng(0).random((80, 1))

    def read_responses(layer: str, *, images: Any) -> Any:
        assert len(set(images)) == 50
        return responses[images].astype(np.float16)

    scan: Any = SimpleNamespace(images=80, responses=read_responses)
    names = name_units(scan, "x", ConceptTable(["third"], make_label_matrix(labels)))
    assert list_texts(names) == ["third"]
    assert names[0] is not None
    assert names[0].auprc == pytest.approx(1)
