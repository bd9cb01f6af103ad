"""Scores of detectors: lists of boxes with labels and scores, and queries with boxes."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from sightline.errors import SightlineError

# A detection matches a box if they overlap by at least this much (intersection over union).
MIN_BOX_OVERLAP = 0.5


def read_class_detections(detections: Sequence[Mapping[str, Tensor]], count: int) -> Tensor:
    """The score of the best detection of each class in each image, N×count; 0 without one."""
    rows: list[Tensor] = []
    for detection in detections:
        scores = detection["scores"]
        labels = detection.get("labels", torch.zeros_like(scores, dtype=torch.long))
        by_class = scores.new_zeros(count)
        is_known = labels < count
        best = by_class.scatter_reduce(0, labels[is_known].long(), scores[is_known], "amax")
        rows.append(best)
    return torch.stack(rows)


def read_box_detections(
    detections: Sequence[Mapping[str, Tensor]], box: Tensor, label: int | None
) -> Tensor:
    """The score, N, of the detection that overlaps a box most; 0 where none overlaps by half.

    `box` is x0, y0, x1, y1 in pixels; `label` restricts the detections to one class.
    """
    best_scores: list[Tensor] = []
    for detection in detections:
        scores = detection["scores"]
        overlaps = compute_box_overlaps(detection["boxes"].detach(), box.to(scores))
        if label is not None and "labels" in detection:
            overlaps = overlaps.masked_fill(detection["labels"] != label, 0)
        is_matched = len(overlaps) > 0 and bool(overlaps.max() >= MIN_BOX_OVERLAP)
        # A sum over no scores keeps its place in the graph.
        best_scores.append(scores[overlaps.argmax()] if is_matched else scores.sum() * 0)
    return torch.stack(best_scores)


def read_box_queries(
    scores: Tensor, boxes: Tensor, box: Tensor, label: int | None, image_shape: Sequence[int]
) -> Tensor:
    """The score, N, of the query whose box overlaps `box` most (DETR, Carion 2020).

    Args:
        scores: N×queries×classes.
        boxes: N×queries×4, centre and size as shares of the image.
        box: x0, y0, x1, y1 in pixels.
        label: the class; None for the best class of that query that is not the last, «no object».
        image_shape: N×C×H×W of the images.
    """
    height, width = image_shape[-2:]
    center_x, center_y, box_width, box_height = boxes.detach().float().unbind(-1)
    corners = torch.stack(
        [
            (center_x - box_width / 2) * width,
            (center_y - box_height / 2) * height,
            (center_x + box_width / 2) * width,
            (center_y + box_height / 2) * height,
        ],
        -1,
    )
    best_scores: list[Tensor] = []
    for query_scores, query_boxes in zip(scores, corners, strict=True):
        overlaps = compute_box_overlaps(query_boxes, box.to(query_boxes))
        best_query = query_scores[overlaps.argmax()]
        best_scores.append(best_query[:-1].amax() if label is None else best_query[label])
    return torch.stack(best_scores)


def compute_box_overlaps(boxes: Tensor, box: Tensor) -> Tensor:
    """Intersection over union of K boxes with one, K."""
    from torchvision.ops import box_iou

    if not len(boxes):
        return boxes.new_zeros(0)
    return box_iou(boxes, box[None])[:, 0]


def find_query_boxes(output: Any) -> Tensor | None:
    """The boxes N×queries×4 beside the scores of a detector with queries; None without them."""
    boxes = None
    if isinstance(output, Mapping):
        boxes = cast(Mapping[str, Any], output).get("pred_boxes")
    is_boxes = isinstance(boxes, Tensor) and boxes.ndim == 3 and boxes.shape[-1] == 4
    return boxes if is_boxes else None


def make_no_boxes_error(network_name: str) -> SightlineError:
    """The error for a box that is asked of a network that has none."""
    return SightlineError(
        f"{network_name} gives no boxes, so box(...) can't be asked of it; "
        "ask for a region(mask, label) or a label"
    )
