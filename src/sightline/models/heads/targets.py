# ruff: noqa: N801 - targets are called as functions: sl.unit("layer4", 7)
"""Targets: what may be asked of a network beside the score of a class.

A target is bound to a model and becomes its head: one score for each image. Every method then works
with that score as it does with a class's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from sightline.errors import (
    SightlineError,
    get_first_error_line,
    make_out_of_range_error,
)
from sightline.images.io.pictures import read
from sightline.images.validation import describe_out_of_range
from sightline.models.heads.detections import (
    check_box_in_image,
    find_query_boxes,
    make_no_boxes_error,
    read_box_detections,
    read_box_queries,
    warn_of_unmatched_box,
)
from sightline.models.heads.output_head import OutputHead, require_tensor
from sightline.models.heads.selection import is_detection_list
from sightline.models.heads.target_head import ScoredModel, TargetHead
from sightline.models.layers.feature_maps import reshape_to_feature_maps

# How far an image may leave [0, 1].
RANGE_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Target:
    """What is asked about. Its text, such as `pixel(10, 20, 'cat')`, makes it again."""

    def bind(self, model: ScoredModel) -> TargetHead:
        """The head that reads the target's score from this model."""
        raise NotImplementedError

    def __str__(self) -> str:
        arguments: list[str] = []
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                text = describe_tensor(value)
            elif value == item.default:
                continue
            else:
                text = repr(value)
            is_named = item.default is None
            arguments.append(f"{item.name}={text}" if is_named else text)
        return f"{type(self).__name__}({', '.join(arguments)})"


@dataclass(frozen=True)
class unit(Target):
    """The activation of one unit of a layer, averaged over its positions.

    Args:
        layer: name, alias or landmark of the layer.
        channel: index of the unit.
        position: row and column of one position of the map, instead of their mean.
    """

    layer: str
    channel: int
    position: tuple[int, int] | None = None

    def bind(self, model: ScoredModel) -> TargetHead:
        """Raises SightlineError for an unknown layer, unit or position."""
        layer_name = model.layer(self.layer)
        shape = model.shape(layer_name)

        def compute_score(
            _output: Any, tensors: Mapping[str, Tensor], image_shape: Sequence[int]
        ) -> Tensor:
            tensor = tensors[layer_name]
            if tensor.ndim == 2:
                units = tensor[:, :, None, None]
            else:
                units = reshape_to_feature_maps(
                    tensor,
                    *image_shape[-2:],
                    batch=image_shape[0],
                    model=model,
                    layer=layer_name,
                )
            check_index(f"the unit of {self.layer}", self.channel, units.shape[1])
            unit_map = units[:, self.channel]
            if self.position is None:
                return unit_map.flatten(1).mean(1)
            row, column = require_position(self.position)
            check_index(f"the row in {self.layer}", row, unit_map.shape[1])
            check_index(f"the column in {self.layer}", column, unit_map.shape[2])
            return unit_map[:, row, column]

        if self.position is not None:
            require_position(self.position)
        if len(shape) == 1:
            check_index(f"the unit of {self.layer}", self.channel, shape[0])
        if layer_name == "logits":
            return classes(self.channel).bind(model)
        place = "" if self.position is None else f" at {self.position}"
        description = f"unit {self.channel} of {self.layer}{place}"
        return TargetHead(description, compute_score, (layer_name,), needs_output=False)


@dataclass(frozen=True)
class classes(Target):
    """The sum of the scores of several classes, given by number or name."""

    labels: tuple[int | str, ...]

    def __init__(self, *labels: int | str) -> None:
        object.__setattr__(self, "labels", labels)

    def __str__(self) -> str:
        return f"classes({', '.join(map(repr, self.labels))})"

    def bind(self, model: ScoredModel) -> TargetHead:
        """Raises SightlineError for an unknown class, and for none."""
        if not self.labels:
            raise SightlineError("classes() names no class; give one or more")
        head = model.head
        indices = [model.index(label) for label in self.labels]

        def compute_score(
            output: Any, tensors: Mapping[str, Tensor], image_shape: Sequence[int]
        ) -> Tensor:
            scores = head.read_scores(head.select(output), tensors, image_shape)
            return scores[:, indices].sum(1)

        names = " and ".join(model.labels[index] for index in indices)
        return TargetHead(names, compute_score)


@dataclass(frozen=True)
class pixel(Target):
    """The score of a class at one pixel, of a network that scores every place.

    Args:
        y: row of the pixel in the image.
        x: column of the pixel in the image.
        label: number or name of the class.
    """

    y: int
    x: int
    label: int | str

    def bind(self, model: ScoredModel) -> TargetHead:
        """Raises SightlineError for a network without a score for every place."""
        dense = require_dense_head(model, "pixel")
        index = model.index(self.label)

        def compute_score(
            output: Any, _tensors: Mapping[str, Tensor], image_shape: Sequence[int]
        ) -> Tensor:
            height, width = image_shape[-2:]
            check_index("the pixel's row y", self.y, height)
            check_index("the pixel's column x", self.x, width)
            maps = dense.select(output)
            rows, columns = maps.shape[-2:]
            return maps[:, index, self.y * rows // height, self.x * columns // width]

        description = f"{model.labels[index]} at row {self.y}, column {self.x}"
        return TargetHead(description, compute_score)


@dataclass(frozen=True, eq=False)
class region(Target):
    """The mean score of a class over a region, of a network that scores every place.

    Args:
        mask: H×W, true or 1 inside, or the path of an image that is white inside. It is resized to
            the network's places by area.
        label: number or name of the class.
    """

    mask: Tensor | NDArray[Any] | str
    label: int | str

    def bind(self, model: ScoredModel) -> TargetHead:
        """Raises SightlineError for an empty mask, and a network without a score everywhere."""
        dense = require_dense_head(model, "region")
        index = model.index(self.label)
        mask = load_mask(self.mask)

        def compute_score(
            output: Any, _tensors: Mapping[str, Tensor], image_shape: Sequence[int]
        ) -> Tensor:
            check_mask_axes(mask, image_shape)
            maps = dense.select(output)
            weights = F.adaptive_avg_pool2d(mask.to(maps)[None], maps.shape[-2:])[0]
            return (maps[:, index] * weights).flatten(1).sum(1) / weights.sum()

        return TargetHead(f"{model.labels[index]} in a region", compute_score)


@dataclass(frozen=True)
class box(Target):
    """The score of the detection that overlaps a box most, 0 where none overlaps it by half.

    Of a detector with queries (DETR), the class score of the query whose box overlaps it most, or
    is nearest to it. A box that matches nothing at the first run is told by a warning.

    Args:
        x0: left edge in pixels of the image.
        y0: upper edge.
        x1: right edge.
        y1: lower edge.
        label: number or name of the class; None for any.
    """

    x0: float
    y0: float
    x1: float
    y1: float
    label: int | str | None = None

    def bind(self, model: ScoredModel) -> TargetHead:
        """Raises SightlineError for an empty box, and for a network without boxes."""
        if not (self.x0 < self.x1 and self.y0 < self.y1):
            raise SightlineError(
                f"the box is x {self.x0:g} to {self.x1:g}, y {self.y0:g} to {self.y1:g}; "
                "x0 must be below x1 and y0 below y1"
            )
        if model.output_kind not in ("detections", "positions"):
            raise make_no_boxes_error(model.name)
        index = None if self.label is None else model.index(self.label)
        corners = torch.tensor([self.x0, self.y0, self.x1, self.y1])
        scores_head = model.head
        # The last column of a network with queries, unless all classes were given their names.
        has_no_object = model.labels[-1] in ("no object", f"class {len(model.labels) - 1}")
        is_first_run = True

        def compute_score(
            output: Any, _tensors: Mapping[str, Tensor], image_shape: Sequence[int]
        ) -> Tensor:
            nonlocal is_first_run
            check_box_in_image(corners, image_shape)
            selected = scores_head.select(output)
            if is_detection_list(selected):
                if is_first_run:
                    warn_of_unmatched_box(selected, corners, index)
                is_first_run = False
                return read_box_detections(selected, corners, index)
            query_boxes = find_query_boxes(output)
            if query_boxes is None:
                raise make_no_boxes_error(model.name)
            return read_box_queries(
                selected, query_boxes, corners, index, image_shape, has_no_object=has_no_object
            )

        name = "detection" if index is None else model.labels[index]
        place = ", ".join(f"{edge:.4g}" for edge in (self.x0, self.y0, self.x1, self.y1))
        return TargetHead(f"{name} in the box ({place})", compute_score)


@dataclass(frozen=True, eq=False)
class similar_to(Target):
    """The cosine between the features of each image and those of another image.

    Args:
        image: 1×C×H×W in [0, 1] as the network sees it, or the path of an image, which is resized
            and cropped for the network.
        layer: the layer whose features are compared, averaged over its positions; None for the
            network's own output, which is meant for embeddings.
    """

    image: Tensor | str
    layer: str | None = None

    def bind(self, model: ScoredModel) -> TargetHead:
        """Raises SightlineError for an image that can't be read or an output without features."""
        image = self.image
        if isinstance(image, Tensor):
            problem = describe_out_of_range(image, RANGE_TOLERANCE) if image.numel() else ""
            if problem:
                raise SightlineError(f"similar_to takes an image in [0, 1]; this one is {problem}")
        else:
            image = model.fit(read(image))
        if image.ndim != 4 or len(image) != 1:
            raise SightlineError(
                f"similar_to takes one image 1×C×H×W; this one is {tuple(image.shape)}"
            )
        layer_name = None if self.layer is None else model.layer(self.layer)
        embedding_head = model.head if layer_name is None else None

        def compute_features(output: Any, tensors: Mapping[str, Tensor]) -> Tensor:
            if embedding_head is None:
                features = tensors[str(layer_name)]
            else:
                features = embedding_head.select(output)
                require_tensor(features, model.name)
            return features.flatten(2).mean(2) if features.ndim > 2 else features

        with torch.no_grad():
            output, tensors = model.run_with_output(image, [layer_name] if layer_name else [])
            reference = compute_features(output, tensors)

        def compute_score(
            output: Any, tensors: Mapping[str, Tensor], _image_shape: Sequence[int]
        ) -> Tensor:
            return F.cosine_similarity(compute_features(output, tensors), reference, dim=1)

        return TargetHead(
            "similarity to the other image",
            compute_score,
            layers=() if layer_name is None else (layer_name,),
            needs_output=layer_name is None,
        )


@dataclass(frozen=True)
class regression(Target):
    """One number of the network's output as it is, in its own unit."""

    index: int = 0

    def bind(self, model: ScoredModel) -> TargetHead:
        """Raises SightlineError for an index that the output does not have."""
        head = model.head

        def compute_score(
            output: Any, _tensors: Mapping[str, Tensor], image_shape: Sequence[int]
        ) -> Tensor:
            selected = head.select(output)
            require_tensor(selected, model.name)
            numbers = selected.reshape(image_shape[0], -1)
            check_index("the index of the output", self.index, numbers.shape[1])
            return numbers[:, self.index]

        unit_text = f" ({head.unit})" if isinstance(head, OutputHead) and head.unit else ""
        return TargetHead(f"output {self.index}{unit_text}", compute_score)


@dataclass(frozen=True)
class score(Target):
    """A score of one's own: a function of whatever the network returns.

    Args:
        function: from the network's output for N images to N numbers.
        description: what captions call it.
    """

    function: Callable[[Any], Tensor] = field(repr=False)
    description: str = "your own score"

    def bind(self, model: ScoredModel) -> TargetHead:
        """An error in the function is told in one line when the model runs."""
        del model

        def compute_score(
            output: Any, _tensors: Mapping[str, Tensor], _image_shape: Sequence[int]
        ) -> Tensor:
            try:
                return self.function(output)
            except (SightlineError, torch.OutOfMemoryError):
                raise
            except Exception as error:  # the caller's own code
                reason = get_first_error_line(error)
                raise SightlineError(
                    "the target's function fails on the network's output "
                    f"({type(error).__name__}: {reason}); "
                    f"the output is {describe_output(output)}"
                ) from error

        return TargetHead(self.description, compute_score)

    def __str__(self) -> str:
        name = getattr(self.function, "__qualname__", type(self.function).__name__)
        return f"score({name})"


def require_position(position: Any) -> tuple[int, int]:
    """A row and a column. Raises SightlineError for anything else."""
    if not isinstance(position, (tuple, list)) or len(cast(Sequence[Any], position)) != 2:
        raise SightlineError(f"position is {position!r:.60}; give (row, column)")
    row, column = cast(Sequence[int], position)
    return row, column


def check_index(name: str, index: Any, count: int) -> None:
    """Raises SightlineError unless an index lies in 0 to count − 1."""
    if not isinstance(index, int) or not 0 <= index < count:
        raise make_out_of_range_error(name, index, 0, count - 1)


def require_dense_head(model: ScoredModel, target_name: str) -> OutputHead:
    """The model's head; raises SightlineError unless it scores every place."""
    head = model.head
    if not isinstance(head, OutputHead) or head.kind != "dense":
        raise SightlineError(
            f"{model.name} gives {model.output_kind}, no scores for every place, so "
            f"{target_name}(...) can't be asked of it; ask for a label, or for unit(layer, channel)"
        )
    return head


def load_mask(mask: Any) -> Tensor:
    """A mask H×W in [0, 1], from a tensor, an array or a picture.

    Raises SightlineError for an empty one, and for anything else.
    """
    if isinstance(mask, np.ndarray):
        mask = torch.from_numpy(np.ascontiguousarray(mask))
    if not isinstance(mask, (Tensor, str, Path)):
        raise SightlineError(
            f"a region's mask is a tensor H×W or the path of a picture, not {type(mask).__name__}"
        )
    if not isinstance(mask, Tensor):
        mask = read(Path(mask))[0].mean(0)
    while mask.ndim > 2 and mask.shape[0] == 1:
        mask = mask[0]
    if mask.ndim != 2:
        raise SightlineError(f"a region's mask is H×W; this one is {tuple(mask.shape)}")
    values = mask.float()
    if not bool(values.isfinite().all()) or float(values.min()) < 0 or not float(values.sum()) > 0:
        raise SightlineError("a region's mask is 1 inside and 0 outside; this one marks no place")
    return values


def check_mask_axes(mask: Tensor, image_shape: Sequence[int]) -> None:
    """Raises SightlineError for a mask W×H of an image that is not square."""
    height, width = image_shape[-2:]
    if height != width and tuple(mask.shape) == (width, height):
        raise SightlineError(
            f"a region's mask is H×W, {height}×{width}; this one is {width}×{height}: give mask.T"
        )


def describe_tensor(tensor: Tensor) -> str:
    """«tensor 1×3×32×48», in place of its numbers."""
    return f"tensor {'×'.join(map(str, tensor.shape))}"


def describe_output(output: Any) -> str:
    """What a network returned, in a few words."""
    if isinstance(output, Tensor):
        return describe_tensor(output)
    if isinstance(output, Mapping):
        return f"a dict of {', '.join(map(str, output))}"
    return f"a {type(output).__name__}"
