"""One score for each image, whatever shape a target's function returns."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.models.heads.target_head import TargetHead

IMAGE_SHAPE = (3, 4, 20, 30)


def make_head(score: Callable[[Any], Any]) -> TargetHead:
    def compute_score(
        output: Any, tensors: Mapping[str, Tensor], image_shape: Sequence[int]
    ) -> Any:
        assert image_shape == IMAGE_SHAPE
        return score(output) + tensors.get("conv", 0)

    return TargetHead("a score", compute_score, ("conv",))


@pytest.mark.parametrize("shape", [(3,), (3, 1), (1, 3), (3, 1, 1)])
def test_scores_are_a_column(shape: tuple[int, ...]) -> None:
    output = torch.tensor([2.0, -1, 5])
    head = make_head(lambda tensor: 3 * tensor.reshape(shape))
    scores = head.read_scores(head.select(output), {}, IMAGE_SHAPE)
    assert scores.tolist() == [[6], [-3], [15]]
    assert head.to_probabilities(scores) is scores


def test_tensors_of_its_layers_reach_the_score() -> None:
    head = make_head(lambda output: output)
    tensors = {"conv": torch.tensor([10.0, 20, 30])}
    scores = head.read_scores(torch.zeros(3), tensors, IMAGE_SHAPE)
    assert scores.tolist() == [[10], [20], [30]]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (torch.zeros(2), r"\(2,\)"),
        (torch.zeros(3, 2), r"\(3, 2\)"),
        (torch.zeros(()), r"\(\)"),
        (7.0, "float"),
    ],
)
def test_other_than_one_number_an_image_is_refused(value: Any, found: str) -> None:
    head = make_head(lambda _: value)
    with pytest.raises(SightlineError, match=f"one number for each of 3 images; it gave {found}$"):
        head.read_scores(None, {}, IMAGE_SHAPE)


def test_its_only_score_has_the_name_of_the_target() -> None:
    assert make_head(lambda _: 0).name_scores(("cat", "dog"), "net") == ("a score",)
