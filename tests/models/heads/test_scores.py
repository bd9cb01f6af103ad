"""Logits of any network, and gradients of any score."""

import pytest
import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.models.heads.scores import differentiate_scores, select_logits

GENERATOR = torch.Generator().manual_seed(0)
SCORES = torch.rand(2, 4, generator=GENERATOR)
OTHER_SCORES = torch.rand(2, 3, generator=GENERATOR)
SEGMENTATION = torch.rand(2, 5, 3, 4, generator=GENERATOR)


# ── logits ──


@pytest.mark.parametrize(
    ("output", "selector", "expected"),
    [
        (SCORES, None, SCORES),
        ((SCORES, OTHER_SCORES), None, SCORES),
        ((SCORES, OTHER_SCORES), 0, SCORES),
        ([SCORES, OTHER_SCORES], 1, OTHER_SCORES),
        ([SCORES, OTHER_SCORES], -1, OTHER_SCORES),
        ({"aux": OTHER_SCORES, "out": SCORES}, None, SCORES),
        ({"aux": OTHER_SCORES, "out": OTHER_SCORES, "logits": SCORES}, None, SCORES),
        ({"scores": SCORES, "aux": OTHER_SCORES}, None, SCORES),
        ({"aux": OTHER_SCORES, "out": SCORES}, "aux", OTHER_SCORES),
    ],
)
def test_logits_are_selected(output: object, selector: int | str | None, expected: Tensor) -> None:
    assert select_logits(output, selector, "Net") is expected


def test_scores_of_every_position_are_averaged() -> None:
    logits = select_logits(SEGMENTATION, None, "Net")
    expected = torch.zeros(2, 5)
    for row in range(3):
        for column in range(4):
            expected += SEGMENTATION[:, :, row, column] / 12
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize(
    ("output", "selector", "message"),
    [
        ((SCORES, OTHER_SCORES), 2, "output is 2; Net returns 2 values: give a number from 0"),
        ((SCORES, OTHER_SCORES), -3, "output is -3; Net returns 2 values"),
        ((SCORES, OTHER_SCORES), "logits", "output is 'logits'; Net returns 2 values"),
        ({"aux": SCORES, "out": SCORES}, "uax", "no output named 'uax'; did you mean aux"),
        ({"loss": torch.tensor(1.0)}, None, "Net returns Tensor, not N×classes; pick its logits"),
        ((torch.rand(3), SCORES), None, "Net returns Tensor, not N×classes"),
        (None, None, "Net returns NoneType, not N×classes; pick its logits with output="),
    ],
)
def test_outputs_without_logits(output: object, selector: int | str | None, message: str) -> None:
    with pytest.raises(SightlineError, match=message):
        select_logits(output, selector, "Net")


# ── gradients ──


def test_the_gradient_of_the_sum_of_the_scores() -> None:
    x = torch.rand(2, 3, requires_grad=True, generator=torch.Generator().manual_seed(1))
    scores = x.pow(3).sum(1)
    gradient = differentiate_scores(scores, x, "x", retain_graph=True)
    torch.testing.assert_close(gradient, 3 * x.detach().square())
    assert torch.equal(differentiate_scores(scores, x, "x"), gradient)
    with pytest.raises(RuntimeError, match="second time"):
        differentiate_scores(scores, x, "x")


def test_scores_without_a_gradient() -> None:
    x = torch.rand(2, 3, requires_grad=True)
    unrelated = torch.rand(2, 3, requires_grad=True)
    with pytest.raises(SightlineError, match=r"output has no gradient with respect to the image: "):
        differentiate_scores(x.detach().sum(1), x, "the image")
    with pytest.raises(SightlineError, match="the score does not depend on 'conv1'; choose anoth"):
        differentiate_scores(x.square().sum(1), unrelated, "'conv1'")
