"""What outputs mean: logits of any network, positions of any layer, gradients of any score."""

import pytest
import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.models.outputs import (
    differentiate_scores,
    reshape_to_feature_maps,
    reshape_to_unit_grid,
    select_logits,
)

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


# ── positions ──


def number_positions(count: int, rows: int, columns: int, channels: int) -> Tensor:
    """N×C×rows×columns whose values all differ."""
    return (
        torch.arange(count * channels * rows * columns).view(count, channels, rows, columns) * 1.0
    )


@pytest.mark.parametrize(("rows", "columns"), [(6, 9), (7, 7), (4, 11)])
def test_maps_are_returned_as_they_are(rows: int, columns: int) -> None:
    maps = number_positions(2, rows, columns, channels=5)
    assert reshape_to_feature_maps(maps, rows * 16, columns * 16) is maps


@pytest.mark.parametrize(("rows", "columns"), [(6, 9), (7, 7), (4, 11)])
def test_channels_may_come_last(rows: int, columns: int) -> None:
    maps = number_positions(2, rows, columns, channels=24)
    channels_last = maps.permute(0, 2, 3, 1).contiguous()
    assert torch.equal(reshape_to_feature_maps(channels_last, rows * 16, columns * 16), maps)


@pytest.mark.parametrize(("rows", "columns"), [(6, 9), (7, 7), (12, 18), (12, 8)])
@pytest.mark.parametrize("extra_tokens", [0, 1, 5])
def test_tokens_lie_on_the_grid_of_the_image(rows: int, columns: int, extra_tokens: int) -> None:
    maps = number_positions(2, rows, columns, channels=3)
    image_tokens = [maps[:, :, row, column] for row in range(rows) for column in range(columns)]
    class_tokens = [torch.full((2, 3), -1.0)] * extra_tokens
    tokens = torch.stack([*class_tokens, *image_tokens], 1)
    assert torch.equal(reshape_to_feature_maps(tokens, rows * 16, columns * 16), maps)


@pytest.mark.parametrize("shape", [(2, 7), (2, 5, 3), (2, 3, 4, 5, 6)])
def test_features_without_positions(shape: tuple[int, ...]) -> None:
    with pytest.raises(SightlineError, match="has no positions in the image: its output is"):
        reshape_to_feature_maps(torch.zeros(shape), 96, 144)


def test_the_units_of_a_vector_have_one_position() -> None:
    image = torch.zeros(2, 3, 96, 144)
    assert torch.equal(reshape_to_unit_grid(SCORES, image), SCORES.view(2, 4, 1, 1))
    maps = number_positions(2, 6, 9, channels=4)
    assert reshape_to_unit_grid(maps, image) is maps
    tokens = maps.flatten(2).transpose(1, 2)
    assert torch.equal(reshape_to_unit_grid(tokens, image), maps)


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
