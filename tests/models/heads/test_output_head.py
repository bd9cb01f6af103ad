"""Scores and probabilities of each kind of output, against the formulas written out."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.errors import SightlineError
from sightline.models.heads.output_head import OutputHead, invert_sigmoid

SHAPE = (3, 3, 20, 30)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def read(head: OutputHead, output: Any) -> Tensor:
    return head.read_scores(head.select(output), {}, SHAPE)


def test_logits_are_taken_as_they_are() -> None:
    logits = draw(3, 5)
    head = OutputHead("logits", 5)
    assert read(head, logits) is logits
    torch.testing.assert_close(head.to_probabilities(logits), F.softmax(logits, dim=1))


def test_probabilities_become_logits_of_the_same_softmax() -> None:
    probabilities = draw(3, 5).softmax(1)
    head = OutputHead("probabilities", 5, is_activated=True)
    scores = read(head, probabilities)
    torch.testing.assert_close(scores.softmax(1), probabilities)
    assert read(head, torch.tensor([[1.0, 0]])).isfinite().all()


@pytest.mark.parametrize("shape", [(3, 1), (3,)])
@pytest.mark.parametrize("is_activated", [False, True])
def test_yes_or_no_has_a_score_for_each(shape: tuple[int, ...], is_activated: bool) -> None:
    logits = draw(*shape)
    head = OutputHead("binary", 2, is_activated=is_activated)
    scores = read(head, logits.sigmoid() if is_activated else logits)
    yes = logits.view(3, 1)
    torch.testing.assert_close(scores, torch.cat([-yes, yes], 1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(head.to_probabilities(scores).sum(1), torch.ones(3))


@pytest.mark.parametrize("is_activated", [False, True])
def test_independent_labels(is_activated: bool) -> None:
    logits = draw(3, 4)
    head = OutputHead("multilabel", 4, is_activated=is_activated)
    scores = read(head, logits.sigmoid() if is_activated else logits)
    torch.testing.assert_close(scores, logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(head.to_probabilities(scores), 1 / (1 + torch.exp(-scores)))


def test_numbers_and_features_have_no_probabilities() -> None:
    numbers = draw(3, 4)
    for kind in ("regression", "embedding"):
        head = OutputHead(kind, 4)  # type: ignore[arg-type]
        assert read(head, numbers).equal(numbers)
        assert head.to_probabilities(numbers).equal(numbers)


def test_a_dense_output_is_averaged_over_its_places() -> None:
    maps = draw(3, 5, 2, 7)
    expected = torch.stack([maps[..., y, x] for y in range(2) for x in range(7)]).mean(0)
    torch.testing.assert_close(read(OutputHead("dense", 5), maps), expected)


@pytest.mark.parametrize(
    ("axes", "batch_axis", "class_axis"),
    [("nct", 0, 1), ("ntc", 0, 2), ("tnc", 1, 2)],
)
def test_of_positions_the_best_of_each_class_counts(
    axes: str, batch_axis: int, class_axis: int
) -> None:
    by_class = draw(3, 5, 7)
    output = by_class.permute(*("nct".index(axis) for axis in axes))
    head = OutputHead("positions", 5, batch_axis=batch_axis, class_axis=class_axis)
    expected = [[max(row) for row in image] for image in by_class.tolist()]
    assert read(head, output).tolist() == expected


def test_the_part_that_holds_the_scores_is_selected() -> None:
    logits = draw(3, 5)
    output = {"aux": draw(3, 9), "heads": {"age": logits}}
    assert read(OutputHead("logits", 5, selector="heads.age"), output) is logits
    head = OutputHead("logits", 5, network_name="net")
    for value in ("text", [3]):
        with pytest.raises(SightlineError, match=r"net returns \w+, not N×classes; pick its logi"):
            head.read_scores(value, {}, SHAPE)


def test_single_numbers_are_refused() -> None:
    head = OutputHead("logits", 5, network_name="net")
    with pytest.raises(SightlineError, match=r"^net returns a single number for the whole batch"):
        read(head, (torch.tensor(1.5),))
    for output in ([[0.25, 3.0], [1.0, 2.0]], {"logits": 7}):
        with pytest.raises(SightlineError, match=r"^net returns Python numbers, which do not tell"):
            read(head, output)


def test_detections_have_the_best_score_of_each_class() -> None:
    detection = {
        "boxes": torch.zeros(3, 4),
        "labels": torch.tensor([1, 1, 0]),
        "scores": torch.tensor([0.25, 0.75, 0.5]),
    }
    assert read(OutputHead("detections", 3), [detection]).tolist() == [[0.5, 0.75, 0]]


@pytest.mark.parametrize(
    ("kind", "count", "labels", "names"),
    [
        ("logits", 2, ("cat", "dog"), ("cat", "dog")),
        ("logits", 2, (), ("class 0", "class 1")),
        ("binary", 2, (), ("no", "yes")),
        ("binary", 2, ("cat",), ("not cat", "cat")),
        ("binary", 2, ("dog", "cat"), ("dog", "cat")),
        ("positions", 3, ("cat", "dog"), ("cat", "dog", "no object")),
        ("regression", 1, (), ("output",)),
        ("regression", 2, (), ("output 0", "output 1")),
        ("embedding", 2, (), ("dimension 0", "dimension 1")),
    ],
)
def test_names_of_scores(
    kind: Any, count: int, labels: tuple[str, ...], names: tuple[str, ...]
) -> None:
    assert OutputHead(kind, count).name_scores(labels, "net") == names


def test_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SightlineError, match="net has 3 logits, but 2 labels were given"):
        OutputHead("logits", 3).name_scores(("cat", "dog"), "net")


def test_the_sigmoid_is_inverted_up_to_its_ends() -> None:
    logits = torch.linspace(-9, 9, 7, dtype=torch.float64)
    torch.testing.assert_close(invert_sigmoid(logits.sigmoid()), logits)
    ends = invert_sigmoid(torch.tensor([0.0, 1.0]))
    assert ends.isfinite().all()
    assert ends[0] < -15 < 15 < ends[1]


def test_sparse_and_nested_scores_are_refused() -> None:
    with pytest.raises(SightlineError, match=r"a sparse tensor; .*output\.to_dense\(\)"):
        read(OutputHead("logits", 5), draw(3, 5).to_sparse())
    nested = torch.nested.nested_tensor(list(draw(3, 5)), layout=torch.jagged)
    with pytest.raises(SightlineError, match=r"a nested tensor; .*to_padded_tensor"):
        read(OutputHead("logits", 5), nested)


def test_complex_scores_are_refused() -> None:
    with pytest.raises(SightlineError, match="returns complex numbers, which have no order"):
        read(OutputHead("logits", 5), torch.complex(draw(3, 5), draw(3, 5)))
