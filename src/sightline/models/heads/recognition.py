"""What the output of a network means, found from what it gives for a few images.

Logits and probabilities look alike to the code that uses them, and a second softmax over
probabilities makes 99 % look like 0.3 %. So the network is run once, and its output is judged by
its values and by the last operation that made it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from sightline.errors import SightlineError
from sightline.models.heads.output_head import OutputHead, OutputKind, require_tensor
from sightline.models.heads.selection import (
    SCORE_FIELDS,
    is_detection_list,
    list_output_fields,
    select_output,
)

# Fields of networks without a head that hold features, not scores.
FEATURE_FIELDS = ("image_embeds", "pooler_output", "last_hidden_state", "feature_maps")

# How far the sum of probabilities, and the length of a normalized embedding, may be from 1.
SUM_TOLERANCE = 2e-3

# Fewer maps of different sizes may be scores and those of an auxiliary head.
MIN_PYRAMID_LEVELS = 3

# Operations that only rearrange or convert, named as autograd names them.
REARRANGING_OPERATIONS = (
    "View",
    "UnsafeView",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Select",
    "Slice",
    "Alias",
    "Clone",
    "ToCopy",
    "Permute",
    "Transpose",
    "TBackward",
    "Split",
    "Unbind",
    "AsStrided",
)

# Operations that multiply by weights, named as autograd or their Function names them.
WEIGHTED_OPERATIONS = re.compile(r"Addmm|Addbmm|Baddbmm|Mm|Bmm|Mv|Dot|Convolution|Linear|Cdist")


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
        last_operation: what made the output, such as "sigmoid", where autograd does not tell.
    """

    network: nn.Module
    selector: int | str | None
    kind: OutputKind | None
    labels: Sequence[str]
    unit: str
    network_name: str
    image_size: tuple[int, int] | None = None
    last_operation: str = ""


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


def choose_tuple_entry(output: Any) -> int:
    """Which entry of a plain tuple or list holds the scores: 0, or that made from entry 0.

    Networks return their features beside their scores, in either order. Features are what another
    entry is computed from that has another shape. A softmax has the same shape as its scores. A
    single number for each image is a score where weights made it, and else something that is told
    of the scores: an entropy, a norm, the logarithm of a determinant.
    """
    is_named = hasattr(output, "_fields") or is_detection_list(output)
    if not isinstance(output, (tuple, list)) or is_named:
        return 0
    entries = cast(Sequence[Any], output)
    if not entries or not _has_graph(entries[0]):
        return 0
    features = entries[0]
    for number, entry in enumerate(entries[1:], start=1):
        if not _has_graph(entry) or entry.shape == features.shape:
            continue
        (gradient,) = torch.autograd.grad(
            entry.sum(), features, retain_graph=True, allow_unused=True
        )
        is_single_number = entry.numel() <= max(1, len(features))
        if gradient is None or (is_single_number and not _have_weights_between(entry, features)):
            continue
        return number
    return 0


def count_rival_entries(output: Any) -> int:
    """How many entries of a plain tuple or list might be the scores just as well as the first.

    They have its shape and are not computed from it: the scores of other depths or heads.
    """
    if not isinstance(output, (tuple, list)) or hasattr(output, "_fields"):
        return 0
    entries = cast(Sequence[Any], output)
    if not entries or not _has_graph(entries[0]):
        return 0
    rivals = 0
    for entry in entries[1:]:
        if _has_graph(entry) and entry.shape == entries[0].shape:
            (gradient,) = torch.autograd.grad(
                entry.sum(), entries[0], retain_graph=True, allow_unused=True
            )
            rivals += gradient is None
    return rivals


def _have_weights_between(output: Tensor, features: Tensor) -> bool:
    """Whether an operation with weights lies between features and what is computed from them."""
    unseen: list[tuple[Any, bool]] = [(output.grad_fn, False)]
    seen: set[tuple[Any, bool]] = set()
    while unseen:
        node, is_weighted = unseen.pop()
        if node is features.grad_fn and is_weighted:
            return True
        if node is None or node is features.grad_fn or (node, is_weighted) in seen:
            continue
        seen.add((node, is_weighted))
        is_weighted = is_weighted or WEIGHTED_OPERATIONS.search(node.name()) is not None
        unseen += [(function, is_weighted) for function, _ in node.next_functions]
    return False


def _has_graph(value: Any) -> bool:
    """Whether a value is a tensor of real numbers that autograd followed."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.grad_fn is not None


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
    if tensor.ndim > 2 and tensor.flatten(2).shape[2] == 1:
        tensor = tensor.flatten(1)
    if tensor.ndim == 2:
        is_single_number = selected.ndim == 1
        return _recognize_vector(tensor, output, is_single_number, hints)
    if tensor.ndim == 3:
        return _recognize_positions(tensor, output, image_count, hints)
    return _recognize_dense(tensor, output, hints)


def _recognize_vector(
    scores: Tensor, output: Any, is_single_number: bool, hints: HeadHints
) -> OutputHead:
    """The head of an output N×count."""
    count = scores.shape[1]
    values = scores.detach().float()
    in_unit_interval = bool(((values >= 0) & (values <= 1)).all())
    last_operation = find_last_operation(scores) or hints.last_operation.capitalize()
    ends_in_sigmoid = last_operation.startswith("Sigmoid")
    is_squashed = in_unit_interval and ends_in_sigmoid
    if hints.kind is not None:
        is_independent = hints.kind in ("binary", "multilabel")
        is_activated = is_squashed if is_independent else hints.kind == "probabilities"
        return make_head(hints, hints.kind, count, is_activated=is_activated)
    if count == 1:
        if is_single_number and not hints.labels and not is_squashed:
            return make_head(hints, "regression", 1)
        return make_head(hints, "binary", 2, is_activated=is_squashed)
    if in_unit_interval and has_unit_sums(values, 1):
        return make_head(hints, "probabilities", count, is_activated=True)
    if is_squashed:
        return make_head(hints, "multilabel", count, is_activated=True)
    return make_head(hints, _guess_plain_kind(values, output, hints), count)


def _guess_plain_kind(values: Tensor, output: Any, hints: HeadHints) -> OutputKind:
    """The kind of several numbers that no softmax or sigmoid made."""
    if _is_embedding(values, output, hints):
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
        return make_head(hints, "dense", 1, class_axis=0)
    batch_axis = 0
    if scores.shape[0] != image_count and scores.shape[1] == image_count:
        batch_axis = 1  # T×N×C, as recurrent networks give
    by_image = scores.movedim(batch_axis, 0)
    if hints.kind == "embedding" or _names_features(output, hints) or _has_no_classes(hints):
        raise SightlineError(
            f"{hints.network_name} gives features {tuple(by_image.shape[1:])} and no scores; "
            "pick a vector with output=, or ask with target=sl.score(function)"
        )
    class_axis = 2
    if len(hints.labels) == by_image.shape[1] != by_image.shape[2]:
        class_axis = 1
    count = by_image.shape[class_axis]
    is_activated = _are_class_probabilities(by_image, class_axis)
    return make_head(
        hints,
        "positions",
        count,
        is_activated=is_activated,
        batch_axis=batch_axis,
        class_axis=class_axis,
    )


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
    elif _has_no_classes(hints) or (_names_features(output, hints) and not hints.labels):
        return make_head(hints, "embedding", count)  # the mean over the positions
    is_activated = _are_class_probabilities(scores, class_axis)
    return make_head(hints, "dense", count, is_activated=is_activated, class_axis=class_axis)


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


def has_unit_sums(values: Tensor, axis: int) -> bool:
    """Whether the values along an axis sum to 1."""
    sums = values.sum(axis)
    return bool(((sums - 1).abs() <= SUM_TOLERANCE).all())


def _are_class_probabilities(scores: Tensor, axis: int) -> bool:
    """Whether several classes have probabilities along an axis."""
    values = scores.detach().float()
    in_unit_interval = bool(((values >= 0) & (values <= 1)).all())
    return scores.shape[axis] > 1 and in_unit_interval and has_unit_sums(values, axis)


def find_last_operation(tensor: Tensor) -> str:
    """Autograd's name of the operation that made a tensor, «SigmoidBackward0»; may be empty.

    Operations that only rearrange or convert the values are passed over.
    """
    node = tensor.grad_fn
    while node is not None:
        name = node.name()
        if not name.startswith(REARRANGING_OPERATIONS) or not node.next_functions:
            return name
        node = node.next_functions[0][0]
    return ""


def _is_embedding(values: Tensor, output: Any, hints: HeadHints) -> bool:
    """Whether a vector holds features: of length 1, or of a network that says it has no classes."""
    if hints.labels:
        return False
    lengths = values.norm(dim=1)
    if bool(((lengths - 1).abs() <= SUM_TOLERANCE).all()):
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
