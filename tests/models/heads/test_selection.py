"""The part of an output that holds its scores."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.models.heads.selection import (
    is_detection_list,
    list_output_fields,
    select_output,
)

GENERATOR = torch.Generator().manual_seed(0)
SCORES = torch.rand(2, 4, generator=GENERATOR)
OTHER_SCORES = torch.rand(2, 3, generator=GENERATOR)

Heads = namedtuple("Heads", ["aux", "pred"])


@dataclass
class Answer:
    loss: Tensor | None
    logits: Tensor


class Instances:
    """An object of a class of one's own, as detection libraries return."""

    def __init__(self, **values: object) -> None:
        self._values = values
        self.missing = None
        for name, value in values.items():
            setattr(self, name, value)


@pytest.mark.parametrize(
    ("output", "selector", "expected"),
    [
        (SCORES, None, SCORES),
        ((SCORES, OTHER_SCORES), None, SCORES),
        ((SCORES, OTHER_SCORES), 0, SCORES),
        ([SCORES, OTHER_SCORES], 1, OTHER_SCORES),
        ([SCORES, OTHER_SCORES], -1, OTHER_SCORES),
        ([SCORES, OTHER_SCORES], -2, SCORES),
        ({"aux": OTHER_SCORES, "out": SCORES}, None, SCORES),
        ({"aux": OTHER_SCORES, "out": OTHER_SCORES, "logits": SCORES}, None, SCORES),
        ({"scores": SCORES, "aux": OTHER_SCORES}, None, SCORES),
        ({"aux": OTHER_SCORES, "out": SCORES}, "aux", OTHER_SCORES),
        ({"only": SCORES}, None, SCORES),
        ({"only": {"nested": (SCORES,)}}, None, SCORES),
        ({"heads": {"sex": SCORES, "age": OTHER_SCORES}}, "heads.age", OTHER_SCORES),
        ({"heads": [OTHER_SCORES, {"a": SCORES}]}, "heads.1.a", SCORES),
        ({"heads": [OTHER_SCORES, {"a": SCORES}]}, "heads.-1.a", SCORES),
        ({"a.b": SCORES, "a": OTHER_SCORES}, "a.b", SCORES),
        (OrderedDict(loss=None, logits=SCORES), None, SCORES),
        (Heads(OTHER_SCORES, SCORES), None, SCORES),
        (Heads(OTHER_SCORES, SCORES), "aux", OTHER_SCORES),
        (Answer(None, SCORES), None, SCORES),
        (Answer(OTHER_SCORES, SCORES), "loss", OTHER_SCORES),
        (Instances(boxes=OTHER_SCORES, logits=SCORES), None, SCORES),
        (Instances(only=SCORES), None, SCORES),
        ({"a": Instances(x=SCORES, y=OTHER_SCORES)}, "a.y", OTHER_SCORES),
    ],
)
def test_scores_are_selected(output: object, selector: int | str | None, expected: Tensor) -> None:
    assert select_output(output, selector, "Net") is expected


@pytest.mark.parametrize(
    ("output", "selector", "message"),
    [
        ((SCORES, OTHER_SCORES), 2, "output is 2; Net returns 2 values: give a number from 0"),
        ((SCORES, OTHER_SCORES), -3, "output is -3; Net returns 2 values"),
        ((SCORES, OTHER_SCORES), "logits", "output is 'logits'; Net returns 2 values"),
        ({"aux": SCORES, "out": SCORES}, "uax", "no output named 'uax'; did you mean aux"),
        ({"heads": {"sex": SCORES}}, "heads.sax", "no output named 'sax'; did you mean sex"),
        ({"left": SCORES, "right": SCORES}, None, r"several outputs \(left, right\); say which"),
        (SCORES, 1, "output is '1'; Net returns a single Tensor: leave output= out|output is 1"),
    ],
)
def test_parts_that_are_not_there(output: object, selector: int | str | None, message: str) -> None:
    with pytest.raises(SightlineError, match=message):
        select_output(output, selector, "Net")


def test_lists_of_detections() -> None:
    detections = [{"boxes": torch.rand(1, 4), "scores": torch.rand(1), "labels": torch.ones(1)}]
    assert is_detection_list(detections)
    assert select_output(detections, None, "Net") is detections
    assert not is_detection_list([])
    assert not is_detection_list([SCORES])
    assert not is_detection_list([{"boxes": SCORES}])


def test_fields_of_containers() -> None:
    assert list(list_output_fields({3: SCORES, "none": None})) == ["3"]
    assert list(list_output_fields(Heads(1, 2))) == ["aux", "pred"]
    assert list(list_output_fields([5, 6])) == ["0", "1"]
    assert list_output_fields(SCORES) == {}


def test_detections_in_one_container_are_split_by_image() -> None:
    boxes = torch.rand(2, 4, 4, generator=GENERATOR)
    labels = torch.tensor([[1, 0, 2, 1], [0, 0, 1, 2]])
    output = {"boxes": boxes, "scores": SCORES, "labels": labels, "loss": torch.zeros(())}
    for batch in (output, {"detections": Instances(**output)}):
        first, second = select_output(batch, None, "Net")
        assert torch.equal(second["boxes"], boxes[1])
        assert torch.equal(second["labels"], labels[1])
        assert torch.equal(first["scores"], SCORES[0])
        assert set(first) == {"boxes", "scores", "labels"}
    one_image = {"boxes": boxes[0], "scores": SCORES[0], "labels": labels[0]}
    (only,) = select_output(one_image, None, "Net")
    assert torch.equal(only["boxes"], boxes[0])
    # Scores with other boxes, or without labels, stay scores.
    assert select_output({**output, "boxes": boxes[:, :3]}, None, "Net") is SCORES
    assert select_output({"boxes": boxes, "scores": SCORES}, None, "Net") is SCORES


def test_an_image_among_texts_is_scored_by_them() -> None:
    output = {"image_embeds": OTHER_SCORES, "text_embeds": SCORES, "logits_per_image": SCORES}
    assert select_output(output, None, "net") is SCORES
