"""Scores of detectors: lists of boxes with labels and scores, and queries with boxes."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.models.heads.selection import list_output_fields

logger = logging.getLogger(__name__)

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


def check_box_in_image(box: Tensor, image_shape: Sequence[int]) -> None:
    """Raises SightlineError for a box x0, y0, x1, y1 that lies wholly outside of the image."""
    height, width = image_shape[-2:]
    x0, y0, x1, y1 = box.tolist()
    if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
        raise SightlineError(
            f"the box is x {x0:g} to {x1:g}, y {y0:g} to {y1:g}; it lies outside of the image of "
            f"{height}×{width} pixels"
        )


def read_box_detections(
    detections: Sequence[Mapping[str, Tensor]], box: Tensor, label: int | None
) -> Tensor:
    """The score, N, of the detection that overlaps a box most; 0 where none overlaps by half.

    `box` is x0, y0, x1, y1 in pixels; `label` restricts the detections to one class.
    """
    best_scores: list[Tensor] = []
    for detection in detections:
        scores = detection["scores"]
        overlaps = compute_detection_overlaps(detection, box, label)
        is_matched = len(overlaps) > 0 and bool(overlaps.max() >= MIN_BOX_OVERLAP)
        # A sum over no scores keeps its place in the graph.
        best_scores.append(scores[overlaps.argmax()] if is_matched else scores.sum() * 0)
    return torch.stack(best_scores)


def compute_detection_overlaps(
    detection: Mapping[str, Tensor], box: Tensor, label: int | None
) -> Tensor:
    """How much each detection of an image overlaps a box; those of other classes do not."""
    overlaps = compute_box_overlaps(detection["boxes"].detach(), box.to(detection["scores"]))
    if label is not None and "labels" in detection:
        overlaps = overlaps.masked_fill(detection["labels"] != label, 0)
    return overlaps


def warn_of_unmatched_box(
    detections: Sequence[Mapping[str, Tensor]], box: Tensor, label: int | None
) -> None:
    """Says where no detection of any image overlaps a box by half, so that its score is 0."""
    overlaps = [compute_detection_overlaps(detection, box, label) for detection in detections]
    best = max((float(row.max()) for row in overlaps if len(row)), default=0.0)
    if best < MIN_BOX_OVERLAP:
        of_class = "" if label is None else f" of class {label}"
        logger.warning(
            "no detection%s overlaps the box by half (the best one by %.0f %%): its score is 0",
            of_class,
            100 * best,
        )


def read_box_queries(
    scores: Tensor,
    boxes: Tensor,
    box: Tensor,
    label: int | None,
    image_shape: Sequence[int],
    *,
    has_no_object: bool = True,
) -> Tensor:
    """The score, N, of the query whose box overlaps `box` most (DETR, Carion 2020).

    Where none overlaps it, the query whose box is nearest.

    Args:
        scores: N×queries×classes.
        boxes: N×queries×4, centre and size as shares of the image.
        box: x0, y0, x1, y1 in pixels.
        label: the class; None for the best class of that query.
        image_shape: N×C×H×W of the images.
        has_no_object: whether the last column is that of «no object», which is no class.
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
    class_count = scores.shape[-1] - (has_no_object and scores.shape[-1] > 1)
    best_scores: list[Tensor] = []
    for query_scores, query_boxes in zip(scores, corners, strict=True):
        best_query = query_scores[find_nearest_box(query_boxes, box.to(query_boxes))]
        best_scores.append(best_query[:class_count].amax() if label is None else best_query[label])
    return torch.stack(best_scores)


def find_nearest_box(boxes: Tensor, box: Tensor) -> int:
    """The index of the one of K boxes that overlaps another most, or is nearest to it."""
    from torchvision.ops import generalized_box_iou

    nearness = compute_box_overlaps(boxes, box)
    if not bool(nearness.any()):
        nearness = generalized_box_iou(boxes, box[None])[:, 0]
    return int(nearness.argmax())


def compute_box_overlaps(boxes: Tensor, box: Tensor) -> Tensor:
    """Intersection over union of K boxes with one, K."""
    from torchvision.ops import box_iou

    if not len(boxes):
        return boxes.new_zeros(0)
    return box_iou(boxes, box[None])[:, 0]


def find_query_boxes(output: Any) -> Tensor | None:
    """The boxes N×queries×4 beside the scores of a detector with queries; None without them."""
    boxes = list_output_fields(output).get("pred_boxes")
    is_boxes = isinstance(boxes, Tensor) and boxes.ndim == 3 and boxes.shape[-1] == 4
    return boxes if is_boxes else None


def make_no_boxes_error(network_name: str) -> SightlineError:
    """The error for a box that is asked of a network that has none."""
    return SightlineError(
        f"{network_name} gives no boxes, so box(...) can't be asked of it; "
        "ask for a region(mask, label) or a label"
    )
