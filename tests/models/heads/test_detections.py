"""Scores of detectors, against lists of boxes counted by hand."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from sightline.models.heads.detections import (
    check_box_in_image,
    compute_box_overlaps,
    find_nearest_box,
    find_query_boxes,
    make_no_boxes_error,
    read_box_detections,
    read_box_queries,
    read_class_detections,
    warn_of_unmatched_box,
)

# Corners x0, y0, x1, y1; the second covers three quarters of the first.
BOXES = torch.tensor([[10.0, 20, 50, 40], [20, 20, 50, 40], [60, 5, 70, 90]])


def make_detection(labels: list[int], scores: list[float]) -> dict[str, Tensor]:
    return {
        "boxes": BOXES[: len(labels)],
        "labels": torch.tensor(labels),
        "scores": torch.tensor(scores, requires_grad=True),
    }


def overlap(first: Tensor, second: Tensor) -> float:
    """Intersection over union by counting pixels."""
    pixels = torch.zeros(2, 100, 100, dtype=torch.bool)
    for mask, box in zip(pixels, (first, second), strict=True):
        left, top, right, bottom = box.int().tolist()
        mask[top:bottom, left:right] = True
    return float((pixels[0] & pixels[1]).sum() / (pixels[0] | pixels[1]).sum())


def test_overlaps_are_pixels_in_both_by_pixels_in_either() -> None:
    box = torch.tensor([15.0, 10, 65, 35])
    expected = [overlap(candidate, box) for candidate in BOXES]
    assert compute_box_overlaps(BOXES, box).tolist() == pytest.approx(expected)
    assert compute_box_overlaps(torch.empty(0, 4), box).shape == (0,)


def test_each_class_has_the_score_of_its_best_detection() -> None:
    detections = [
        make_detection([2, 0, 2], [0.3, 0.9, 0.7]),
        make_detection([], []),
        make_detection([5, 1], [0.8, 0.25]),  # 5 is no class of a network of four
    ]
    scores = read_class_detections(detections, 4)
    expected = torch.tensor([[0.9, 0, 0.7, 0], [0, 0, 0, 0], [0, 0.25, 0, 0]])
    torch.testing.assert_close(scores, expected)
    scores[0, 2].backward()
    assert detections[0]["scores"].grad is not None
    assert detections[0]["scores"].grad.tolist() == [0, 0, 1]


def test_a_box_outside_of_the_image_is_refused() -> None:
    shape = (1, 3, 40, 60)
    check_box_in_image(torch.tensor([50.0, 30, 90, 90]), shape)
    for corners in ([60, 3, 70, 9], [3, 40, 9, 50], [-9, 3, 0, 9], [3, -9, 9, 0]):
        with pytest.raises(ValueError, match="outside of the image of 40×60 pixels"):
            check_box_in_image(torch.tensor(corners).float(), shape)


def test_an_unmatched_box_is_told(caplog: pytest.LogCaptureFixture) -> None:
    detections = [make_detection([2, 3], [0.3, 0.7]), make_detection([], [])]
    warn_of_unmatched_box(detections, BOXES[0], None)
    warn_of_unmatched_box(detections, BOXES[1], 3)
    assert not caplog.messages
    warn_of_unmatched_box(detections, torch.tensor([10.0, 20, 29, 40]), None)
    warn_of_unmatched_box(detections, BOXES[0], 7)
    assert caplog.messages == [
        "no detection overlaps the box by half (the best one by 47 %): its score is 0",
        "no detection of class 7 overlaps the box by half (the best one by 0 %): its score is 0",
    ]


def test_the_nearest_query_where_none_overlaps() -> None:
    assert find_nearest_box(BOXES, torch.tensor([21.0, 21, 49, 39])) == 1
    assert find_nearest_box(BOXES, torch.tensor([75.0, 40, 80, 50])) == 2
    assert find_nearest_box(BOXES.flip(0), torch.tensor([0.0, 25, 8, 35])) == 2


def test_the_last_class_of_queries_without_no_object() -> None:
    scores = torch.tensor([[[0.1, 0.3, 0.9], [0.2, 0.1, 0.0]]])
    boxes = torch.tensor([[[0.2, 0.3, 0.2, 0.2], [0.8, 0.7, 0.2, 0.2]]])
    box = torch.tensor([4.0, 8, 12, 16])

    def read(scores: Tensor, **options: bool) -> float:
        return float(read_box_queries(scores, boxes, box, None, (1, 3, 40, 40), **options))

    assert read(scores) == pytest.approx(0.3)
    assert read(scores, has_no_object=False) == pytest.approx(0.9)
    assert read(scores[..., 2:]) == pytest.approx(0.9)


def test_detections_without_classes_are_of_class_0() -> None:
    detection = make_detection([0, 0], [0.25, 0.5])
    del detection["labels"]
    assert read_class_detections([detection], 2).tolist() == [[0.5, 0]]


@pytest.mark.parametrize(
    ("box", "label", "expected"),
    [
        ([12, 20, 50, 40], None, 0.2),  # the first covers 38 of 40 columns, the second 30 of 38
        ([12, 20, 50, 40], 3, 0.6),  # only the second is of class 3
        ([12, 20, 50, 40], 7, 0.0),
        ([10, 20, 29, 40], None, 0.0),  # 19 of the 40 columns of the first: less than half
        ([10, 20, 30, 40], None, 0.2),  # exactly half
        ([80, 80, 90, 90], None, 0.0),
    ],
)
def test_a_box_has_the_score_of_the_detection_that_overlaps_it_most(
    box: list[float], label: int | None, expected: float
) -> None:
    detection = make_detection([1, 3], [0.2, 0.6])
    scores = read_box_detections([detection], torch.tensor(box), label)
    assert scores.tolist() == pytest.approx([expected])


def test_an_image_without_a_match_keeps_its_place_in_the_graph() -> None:
    detections = [make_detection([], []), make_detection([1], [0.75])]
    scores = read_box_detections(detections, BOXES[0], None)
    assert scores.tolist() == [0, 0.75]
    scores.sum().backward()
    assert all(detection["scores"].grad is not None for detection in detections)


@pytest.mark.parametrize(("label", "column"), [(0, 0), (2, 2), (None, 1)])
def test_a_box_has_the_score_of_the_query_that_overlaps_it_most(
    label: int | None, column: int
) -> None:
    """The images are 50 high and 80 wide; the last class, the best here, is «no object»."""
    height, width = 50, 80
    corners = torch.tensor([[[0.0, 0, 40, 25], [48, 10, 72, 50]], [[8, 10, 32, 40], [0, 0, 8, 5]]])
    sizes = corners[..., 2:] - corners[..., :2]
    centers = (corners[..., 2:] + corners[..., :2]) / 2
    boxes = torch.cat([centers, sizes], -1) / torch.tensor([width, height, width, height])
    scores = torch.tensor([0.1, 0.3, 0.2, 0.9]) + torch.tensor([[[0.0], [0.01]], [[0.02], [0.03]]])
    found = read_box_queries(
        scores, boxes, torch.tensor([40.0, 8, 80, 48]), label, (2, 3, height, width)
    )
    assert found[0] == scores[0, 1, column]
    first_image_box = corners[1, 0] + 1
    found = read_box_queries(scores, boxes, first_image_box, label, (2, 3, height, width))
    assert found[1] == scores[1, 0, column]


def test_boxes_are_found_beside_the_scores() -> None:
    boxes = torch.rand(2, 5, 4)
    assert find_query_boxes({"logits": torch.rand(2, 5, 9), "pred_boxes": boxes}) is boxes
    assert find_query_boxes(SimpleNamespace(pred_boxes=boxes)) is boxes
    for output in (boxes, {"logits": boxes}, {"pred_boxes": boxes[0]}, {"pred_boxes": [1]}, None):
        assert find_query_boxes(output) is None
    assert find_query_boxes({"pred_boxes": torch.rand(2, 5, 3)}) is None


def test_the_error_names_the_network_and_what_else_to_ask() -> None:
    assert "resnet gives no boxes" in str(make_no_boxes_error("resnet"))
    assert "region(mask, label)" in str(make_no_boxes_error("resnet"))
