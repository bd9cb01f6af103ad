"""What the output of a network means, found from what it gives for a few images.

Logits and probabilities look alike to the code that uses them, and a second softmax over
probabilities makes 99 % look like 0.3 %. So the network is run once, and its output is judged by
its values and by the last operation that made it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from sightline.errors import SightlineError
from sightline.models.heads.detections import find_query_boxes
from sightline.models.heads.output_head import OutputHead, OutputKind, require_tensor
from sightline.models.heads.selection import (
    SCORE_FIELDS,
    is_detection_list,
    list_output_fields,
    select_output,
)

# Fields of networks without a head that hold features, not scores.
FEATURE_FIELDS = ("image_embeds", "pooler_output", "last_hidden_state", "feature_maps")

# Fields that hold numbers at every place: images, depths and motions, no scores of classes.
NUMBER_FIELDS = (
    "reconstruction",
    "recon",
    "reconstructed",
    "sample",
    "predicted_depth",
    "depth",
    "disparity",
    "flow",
    "noise",
    "denoised",
    "normals",
)

# The numbers of a box.
BOX_NUMBERS = 4

# How far the sum of probabilities, and the length of a normalized embedding, may be from 1; in half
# precision as far as the precision goes, if that is farther.
SUM_TOLERANCE = 2e-3

# How far probabilities that were added up may lie beyond 1.
ROUNDING_TOLERANCE = 1e-5

# Fewer maps of different sizes may be scores and those of an auxiliary head.
MIN_PYRAMID_LEVELS = 3


@dataclass(frozen=True)
class HeadHints:
    """What is known of an output beside its values.

    Attributes:
        network: the network, whose configuration may tell whether it has classes.
        selector: which part of the output holds the scores.
        kind: what the caller says that the output means.
        labels: the labels that the caller gave.
        unit: of a regression.
        network_name: what messages call the network.
        image_size: height and width of the images; None where they are not known.
        is_squashed: whether the scores are made of the results of sigmoids or softmaxes alone.
    """

    network: nn.Module
    selector: int | str | None
    kind: OutputKind | None
    labels: Sequence[str]
    unit: str
    network_name: str
    image_size: tuple[int, int] | None = None
    is_squashed: bool = False


def recognize_output_head(output: Any, image_count: int, hints: HeadHints) -> OutputHead:
    """The head of a network that returned `output` for `image_count` different images.

    Raises SightlineError for an output without scores, or without an axis of images.
    """
    selected = select_output(output, hints.selector, hints.network_name)
    if is_detection_list(selected):
        count = len(hints.labels) or count_detector_classes(hints.network, selected)
        return make_head(hints, "detections", count)
    require_tensor(selected, hints.network_name)
    tensor = cast(Tensor, selected)
    require_image_axis(tensor, image_count, hints.network_name)
    head = _recognize_tensor(tensor, output, image_count, hints)
    is_single = tensor[0].numel() == 1 or (head.kind == "dense" and head.count == 1)
    if is_single:
        refuse_whole_numbers(tensor, hints.network_name)
    return replace(head, axes=tensor.ndim) if image_count > 1 else head


def refuse_whole_numbers(tensor: Tensor, network_name: str) -> None:
    """Raises SightlineError for a single whole number for each image or pixel.

    Those are the classes that were chosen, and no scores.
    """
    if not tensor.is_floating_point() and not tensor.is_complex():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise SightlineError(
            f"{network_name} gives whole numbers ({kind}), as the classes that it chose are; pick "
            "the scores behind them with output=, or ask with target=sl.score(function)"
        )


def refuse_list_of_images(together: Any, apart: Any, network_name: str) -> None:
    """Raises SightlineError for a list of one answer for each image, by those to two and to one."""
    are_lists = all(
        isinstance(output, (tuple, list)) and not hasattr(output, "_fields")
        for output in (together, apart)
    )
    if not are_lists or is_detection_list(together) or (len(together), len(apart)) != (2, 1):
        return
    entry = "output"
    if isinstance(apart[0], Mapping):
        entry = f"[answer[{next(iter(apart[0]), 'NAME')!r}] for answer in output]"
    elif not isinstance(apart[0], Tensor):
        return
    raise SightlineError(
        f"{network_name} returns a list of one answer for each image; ask by a function, such as "
        f"target=lambda output: torch.stack({entry})[:, 0]"
    )


def refuse_feature_pyramid(output: Any, hints: HeadHints) -> None:
    """Raises SightlineError for maps of several sizes and channels, none of which are scores.

    Few of them are where a network of timm says what they are.
    """
    named_fields = {} if isinstance(output, (tuple, list)) else list_output_fields(output)
    prefix = ""
    if "feature_maps" in named_fields and not set(named_fields) & set(SCORE_FIELDS):
        output = named_fields["feature_maps"]
        prefix = "feature_maps."
    fewest = 2 if hasattr(hints.network, "feature_info") else MIN_PYRAMID_LEVELS
    if is_feature_pyramid(output, fewest):
        count = len(cast(Sequence[Tensor], output))
        raise SightlineError(
            f"{hints.network_name} returns features at {count} sizes and no scores; pick one with "
            f"output={_quote_path(prefix, 0)} to {_quote_path(prefix, count - 1)}, or ask with "
            "target=sl.unit(layer, unit)"
        )


def is_feature_pyramid(output: Any, fewest: int) -> bool:
    """Whether an output is a list of maps N×C×H×W, no two of a size, of several channel counts."""
    if not isinstance(output, (tuple, list)) or hasattr(output, "_fields"):
        return False
    maps = cast(Sequence[Any], output)
    are_maps = all(isinstance(entry, Tensor) and entry.ndim == 4 for entry in maps)
    if len(maps) < fewest or not are_maps:
        return False
    sizes = {tuple(entry.shape[2:]) for entry in maps}
    channels = {entry.shape[1] for entry in maps}
    return len(sizes) == len(maps) and len(channels) > 1


def _quote_path(prefix: str, number: int) -> str:
    """How a value is picked: its number, or a path that ends in it."""
    return repr(f"{prefix}{number}") if prefix else str(number)


def refuse_boxes_among_scores(by_image: Tensor, network_name: str) -> None:
    """Raises SightlineError for positions with a box in pixels before the probabilities of each.

    Detectors that work by a grid give these, as N×positions×(4 + classes) or with these two axes
    the other way round. Boxes are told by numbers above 1 beside probabilities.
    """
    for axis, index in ((2, "[:, :, 4:]"), (1, "[:, 4:]")):
        if by_image.shape[axis] <= BOX_NUMBERS:
            continue
        rows = by_image.detach().float().movedim(axis, 2)
        boxes = rows[..., :BOX_NUMBERS]
        scores = rows[..., BOX_NUMBERS:]
        has_many = scores[0].numel() > 2 * BOX_NUMBERS
        if has_many and are_in_unit_interval(scores) and bool((boxes > 1).any(1).all()):
            raise SightlineError(
                f"{network_name} gives the four numbers of a box before the scores of each "
                f"position; ask about the scores alone, such as with "
                f"target=lambda output: output{index}.amax((1, 2)), or let it return a dict of "
                "boxes, scores and labels"
            )


def require_image_axis(tensor: Tensor, image_count: int, network_name: str) -> None:
    """Raises SightlineError unless an axis of the output counts the images, or has length 1.

    One answer for all images may be that of networks which take one image at a time.
    """
    shape = tuple(tensor.shape)
    has_images_second = len(shape) == 3 and shape[1] in (1, image_count)
    if shape[0] in (1, image_count) or has_images_second:
        return
    images = "one image" if image_count == 1 else f"{image_count} images"
    raise SightlineError(
        f"{network_name} gives an output of {'×'.join(map(str, shape))} for {images}; its first "
        "axis has to count the images, as N×classes does: ask with target=sl.score(function)"
    )


def _recognize_tensor(
    selected: Tensor, output: Any, image_count: int, hints: HeadHints
) -> OutputHead:
    """The head of a tensor that holds the scores; `output` is all that the network returned."""
    tensor = selected
    if tensor.ndim == 1:
        tensor = tensor[:, None]
    is_map_of_one = tensor.ndim > 2 and tensor.flatten(2).shape[2] == 1
    if is_map_of_one and not _has_box_for_each(tensor, output):
        tensor = tensor.flatten(1)
    if tensor.ndim == 2:
        is_single_number = selected.ndim == 1
        return _recognize_vector(tensor, output, is_single_number, hints)
    if tensor.ndim == 3:
        return _recognize_positions(tensor, output, image_count, hints)
    return _recognize_dense(tensor, output, hints)


def _has_box_for_each(scores: Tensor, output: Any) -> bool:
    """Whether scores N×queries×1 are those of queries with boxes, as of a detector of one class."""
    boxes = find_query_boxes(output)
    return boxes is not None and scores.shape[:-1] == boxes.shape[:-1]


def _recognize_vector(
    scores: Tensor, output: Any, is_single_number: bool, hints: HeadHints
) -> OutputHead:
    """The head of an output N×count."""
    count = scores.shape[1]
    values = scores.detach().float()
    in_unit_interval = are_in_unit_interval(values)
    is_squashed = _is_squashed(scores, hints)
    if hints.kind is not None:
        is_independent = hints.kind in ("binary", "multilabel")
        is_activated = is_squashed if is_independent else hints.kind == "probabilities"
        return make_head(hints, hints.kind, count, is_activated=is_activated)
    if count == 1:
        if is_single_number and not hints.labels and not is_squashed:
            return make_head(hints, "regression", 1)
        return make_head(hints, "binary", 2, is_activated=is_squashed)
    if in_unit_interval and has_unit_sums(scores, 1):
        return make_head(hints, "probabilities", count, is_activated=True)
    if is_squashed:
        return make_head(hints, "multilabel", count, is_activated=True)
    return make_head(hints, _guess_plain_kind(scores, output, hints), count)


def _guess_plain_kind(scores: Tensor, output: Any, hints: HeadHints) -> OutputKind:
    """The kind of several numbers that no softmax or sigmoid made."""
    if _is_embedding(scores, output, hints):
        return "embedding"
    problem_type = get_problem_type(hints.network)
    if problem_type == "multi_label_classification":
        return "multilabel"
    return "regression" if problem_type == "regression" else "logits"


def _recognize_positions(
    scores: Tensor, output: Any, image_count: int, hints: HeadHints
) -> OutputHead:
    """The head of an output with three axes: images, positions and classes in some order.

    One that has the size of the images has a score at each pixel.
    """
    if _has_image_size(scores.shape[1:], hints):
        head = make_head(hints, "dense", 1, class_axis=0)
        return _add_place_kind(head, scores[:, None], 1, hints)
    batch_axis = 0
    if scores.shape[0] != image_count and scores.shape[1] == image_count:
        batch_axis = 1  # T×N×C, as recurrent networks give
    by_image = scores.movedim(batch_axis, 0)
    if hints.kind == "embedding" or _names_features(output, hints) or _has_no_classes(hints):
        raise SightlineError(
            f"{hints.network_name} gives features {tuple(by_image.shape[1:])} and no scores; "
            "pick a vector with output=, or ask with target=sl.score(function)"
        )
    refuse_boxes_among_scores(by_image, hints.network_name)
    class_axis = 2
    if len(hints.labels) == by_image.shape[1] != by_image.shape[2]:
        class_axis = 1
    count = by_image.shape[class_axis]
    head = make_head(hints, "positions", count, batch_axis=batch_axis, class_axis=class_axis)
    head = _add_place_kind(head, by_image, class_axis, hints)
    # Queries whose classes are all named have no «no object», and so a sigmoid for each class.
    is_independent = _has_box_for_each(by_image, output) and count in (1, len(hints.labels))
    if hints.kind is None and is_independent and not head.is_activated:
        return replace(head, place_kind="multilabel")
    return head


def _recognize_dense(scores: Tensor, output: Any, hints: HeadHints) -> OutputHead:
    """The head of an output N×count×H×W."""
    count = scores.shape[1]
    if scores.ndim != 4:
        raise SightlineError(
            f"{hints.network_name} gives an output of {scores.ndim} axes, "
            f"{tuple(scores.shape)}; scores are N×classes or N×classes×height×width: "
            "ask with target=sl.score(function)"
        )
    class_axis = 1
    if _has_image_size(scores.shape[1:3], hints) and not _has_image_size(scores.shape[2:], hints):
        class_axis = 3  # N×H×W×classes
        count = scores.shape[3]
    elif _holds_features(output, hints):
        return make_head(hints, "embedding", count)  # the mean over the positions
    head = make_head(hints, "dense", count, class_axis=class_axis)
    if hints.kind is None and _names_numbers(output, hints):
        return replace(head, place_kind="regression")
    return _add_place_kind(head, scores, class_axis, hints)


def _names_numbers(output: Any, hints: HeadHints) -> bool:
    """Whether maps without labels come under the name of an image, a depth or a motion."""
    if hints.labels:
        return False
    if hints.selector is not None:
        return not set(NUMBER_FIELDS).isdisjoint(str(hints.selector).split("."))
    names = set(list_output_fields(output))
    return bool(names & set(NUMBER_FIELDS)) and not names & set(SCORE_FIELDS)


def _segments(network: nn.Module) -> bool:
    """Whether a network says of itself that it segments, as those of Hugging Face and smp do."""
    return "Segmentation" in type(network).__name__ or hasattr(network, "segmentation_head")


def _holds_features(output: Any, hints: HeadHints) -> bool:
    """Whether maps are features by what the caller, the network or their own name says."""
    if hints.kind is not None:
        return hints.kind == "embedding"
    return _has_no_classes(hints) or (_names_features(output, hints) and not hints.labels)


def _add_place_kind(
    head: OutputHead, scores: Tensor, class_axis: int, hints: HeadHints
) -> OutputHead:
    """A head with what the scores of each place or position mean.

    A single score is a number, unless a sigmoid made it or it has a label.
    """
    is_declared = hints.kind in (None, "probabilities")
    if is_declared and _are_class_probabilities(scores, class_axis):
        return replace(head, place_kind="probabilities", is_activated=True)
    if hints.kind == "regression":
        return replace(head, place_kind="regression")
    is_squashed = _is_squashed(scores, hints)
    is_independent = is_squashed or hints.kind in ("multilabel", "binary")
    if head.count == 1 and not is_independent:
        is_class = bool(hints.labels) or _segments(hints.network)
        is_independent = is_class or hints.kind is not None
        if not is_independent:
            return replace(head, place_kind="regression")
    if is_independent:
        return replace(head, place_kind="multilabel", is_activated=is_squashed)
    return head


def _has_image_size(shape: Sequence[int], hints: HeadHints) -> bool:
    """Whether two axes are the rows and columns of the images."""
    return hints.image_size is not None and tuple(shape) == hints.image_size


def make_head(
    hints: HeadHints,
    kind: OutputKind,
    count: int,
    *,
    is_activated: bool = False,
    batch_axis: int = 0,
    class_axis: int = 1,
) -> OutputHead:
    """The head with what the hints say of it."""
    if kind == "binary" and count == 1:
        count = 2
    return OutputHead(
        kind=kind,
        count=count,
        selector=hints.selector,
        network_name=hints.network_name,
        is_activated=is_activated,
        batch_axis=batch_axis,
        class_axis=class_axis,
        unit=hints.unit,
    )


# ── evidence ──


def has_unit_sums(scores: Tensor, axis: int) -> bool:
    """Whether the scores along an axis sum to 1."""
    return are_ones(scores.detach().float().sum(axis), scores.dtype)


def are_ones(values: Tensor, precision: torch.dtype) -> bool:
    """Whether values that were computed from numbers of some precision are 1."""
    tolerance = SUM_TOLERANCE
    if precision.is_floating_point:
        tolerance = max(tolerance, torch.finfo(precision).eps)
    return bool(((values - 1).abs() <= tolerance).all())


def _are_class_probabilities(scores: Tensor, axis: int) -> bool:
    """Whether several classes have probabilities along an axis."""
    values = scores.detach().float()
    has_classes = scores.shape[axis] > 1
    return has_classes and are_in_unit_interval(values) and has_unit_sums(scores, axis)


def are_in_unit_interval(values: Tensor, tolerance: float = 0.0) -> bool:
    """Whether all values lie in [0, 1]."""
    return bool(((values >= -tolerance) & (values <= 1 + tolerance)).all())


def _is_squashed(scores: Tensor, hints: HeadHints) -> bool:
    """Whether scores are probabilities, since they are made of the results of sigmoids alone."""
    return hints.is_squashed and are_in_unit_interval(scores.detach().float(), ROUNDING_TOLERANCE)


def _is_embedding(scores: Tensor, output: Any, hints: HeadHints) -> bool:
    """Whether a vector holds features: of length 1, or of a network that says it has no classes."""
    if hints.labels:
        return False
    if are_ones(scores.detach().float().norm(dim=1), scores.dtype):
        return True
    return _has_no_classes(hints) or _names_features(output, hints)


def _has_no_classes(hints: HeadHints) -> bool:
    """Whether a network says of itself that it has no classes, as those of timm without a head."""
    return getattr(hints.network, "num_classes", None) == 0 and not hints.labels


def _names_features(output: Any, hints: HeadHints) -> bool:
    """Whether the output's part has the name of features, as networks without a head give them."""
    name = str(hints.selector) if hints.selector is not None else None
    if name is None:
        names = list_output_fields(output)
        name = next((field for field in FEATURE_FIELDS if field in names), None)
        has_scores = any(field in names for field in SCORE_FIELDS if field not in FEATURE_FIELDS)
        return name is not None and not has_scores
    return not set(FEATURE_FIELDS).isdisjoint(name.split("."))


def get_problem_type(network: nn.Module) -> str:
    """The `problem_type` in the configuration of a Hugging Face network; may be empty."""
    config = getattr(network, "config", None)
    return str(getattr(config, "problem_type", None) or "")


def count_detector_classes(network: nn.Module, detections: Sequence[Mapping[str, Tensor]]) -> int:
    """How many classes a detector has, by its modules' `num_classes` or its classifier's size."""
    for module in network.modules():
        count = getattr(module, "num_classes", None)
        if isinstance(count, int) and count > 1:
            return count
        classifier = getattr(module, "cls_score", None)
        if isinstance(classifier, nn.Linear):
            return classifier.out_features
    largest = [int(item["labels"].max()) for item in detections if len(item.get("labels", ()))]
    return max(largest, default=0) + 1
