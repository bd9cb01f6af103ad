"""How scores and probabilities are read from the output of each kind of network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.models.heads.detections import read_class_detections
from sightline.models.heads.selection import select_output

OutputKind = Literal[
    "logits",
    "probabilities",
    "binary",
    "multilabel",
    "regression",
    "embedding",
    "dense",
    "positions",
    "detections",
]

# Those that a user may declare: the shape of the output tells the others.
DeclaredKind = Literal["logits", "probabilities", "binary", "multilabel", "regression", "embedding"]

OUTPUT_KIND_DESCRIPTIONS: dict[str, str] = {
    "logits": "one score for each class, before the softmax",
    "probabilities": "class probabilities, after the softmax",
    "binary": "one score, for yes or no",
    "multilabel": "one independent score for each label",
    "regression": "numbers in their own unit",
    "embedding": "a vector of features",
    "dense": "class scores at every place",
    "positions": "class scores at several positions or queries",
    "detections": "boxes with a label and a score",
    "target": "the score of a target",
}

# Kinds whose scores compete for the one class of an image.
CLASS_KINDS = ("logits", "probabilities", "dense", "positions")

# Kinds with scores at many places of an image.
PLACE_KINDS = ("dense", "positions")

# The smallest probability whose logarithm is taken.
SMALLEST_PROBABILITY = 1e-12


class Head(Protocol):
    """Reads the scores N×K that a method asks about from what the network returned."""

    @property
    def kind(self) -> str:
        """A key of OUTPUT_KIND_DESCRIPTIONS."""
        ...

    @property
    def layers(self) -> Sequence[str]:
        """Layers whose tensors are needed, by their own names."""
        ...

    @property
    def needs_output(self) -> bool:
        """Whether the network has to run to its end."""
        ...

    def select(self, output: Any) -> Any:
        """The part of the network's output that `read_scores` takes."""
        ...

    def read_scores(
        self, selected: Any, tensors: Mapping[str, Tensor], image_shape: Sequence[int]
    ) -> Tensor:
        """Scores N×K for images of shape N×C×H×W; `tensors` are those of `layers`."""
        ...

    def to_probabilities(self, scores: Tensor) -> Tensor:
        """Probabilities of the shape of the scores; scores that have none are returned as given."""
        ...

    def name_scores(self, labels: Sequence[str], network_name: str) -> tuple[str, ...]:
        """A name for each score, from the labels that the user gave.

        Raises SightlineError where their number does not fit.
        """
        ...


@dataclass(frozen=True)
class OutputHead:
    """The head of a network, as `recognize_output_head` finds it.

    Attributes:
        kind: what the output means.
        count: how many scores there are.
        selector: which part of the output holds them.
        network_name: what messages call the network.
        is_activated: whether the network itself has applied its softmax or sigmoid.
        batch_axis: the axis of the images, for outputs of positions: 0, or 1 in T×N×C.
        class_axis: the axis of the classes: 1, or 2 in N×positions×classes, 3 in N×H×W×classes, 0
            in N×H×W, which has none.
        unit: of a regression, «years».
        place_kind: what the scores of each place of a dense output, or of each position, mean:
            "logits", "probabilities", "multilabel" or "regression".
        axes: how many the output has for several images; 0 where that is not known.
    """

    kind: OutputKind
    count: int
    selector: int | str | None = None
    network_name: str = "the network"
    is_activated: bool = False
    batch_axis: int = 0
    class_axis: int = 1
    unit: str = ""
    place_kind: OutputKind = "logits"
    axes: int = 0

    layers: tuple[str, ...] = ()
    needs_output: bool = True

    @property
    def score_kind(self) -> OutputKind:
        """What a score means, whether there is one of each class or one of each at every place."""
        return self.place_kind if self.kind in PLACE_KINDS else self.kind

    @property
    def has_mean_probabilities(self) -> bool:
        """Whether a score is a mean, or the highest, of independent probabilities at places."""
        return self.is_activated and self.kind in PLACE_KINDS and self.place_kind == "multilabel"

    def select(self, output: Any) -> Any:
        """The tensor, or list of detections, that holds the scores.

        Dense scores are N×count×H×W, whatever axes the network gives them.
        """
        selected = select_output(output, self.selector, self.network_name)
        if not isinstance(selected, Tensor):
            return selected
        if selected.ndim < self.axes:
            # A network that squeezes its output loses the axis of the images where there is one.
            selected = selected.unsqueeze(self.batch_axis)
        if self.kind != "dense" or self.class_axis == 1:
            return selected
        return selected.movedim(3, 1) if self.class_axis == 3 else selected.unsqueeze(1)

    def read_scores(
        self, selected: Any, tensors: Mapping[str, Tensor], image_shape: Sequence[int]
    ) -> Tensor:
        """Scores N×count, differentiable: logits where the network gives logits or probabilities.

        A dense output is averaged over its places, one of positions gives the highest score of each
        class, and detections the score of the best detection of each class, 0 without one. One
        score for yes or no becomes two, for no and for yes. Independent probabilities of places
        stay what they are.
        """
        del tensors, image_shape
        if self.kind == "detections":
            return read_class_detections(selected, self.count)
        require_tensor(selected, self.network_name)
        if not selected.is_floating_point():
            selected = selected.float()  # whole numbers
        scores = self._flatten_positions(selected)
        if self.kind == "binary":
            score = invert_sigmoid(scores) if self.is_activated else scores
            return torch.cat([-score, score], 1)
        if self.is_activated and self.kind == "multilabel":
            return invert_sigmoid(scores)
        if self.is_activated and not self.has_mean_probabilities:
            return scores.clamp_min(SMALLEST_PROBABILITY).log()
        return scores

    def _flatten_positions(self, output: Tensor) -> Tensor:
        """The output as N×count."""
        if output.ndim == 1:
            return output[:, None]
        if self.kind == "positions":
            by_class = output.movedim(self.batch_axis, 0).movedim(self.class_axis, 1)
            return by_class.flatten(2).amax(2)
        if output.ndim > 2:
            return output.flatten(2).mean(2)
        return output

    def to_probabilities(self, scores: Tensor) -> Tensor:
        """Softmax of scores that compete, sigmoid of independent ones; other scores as they are."""
        if self.score_kind in ("binary", "multilabel"):
            return scores if self.has_mean_probabilities else scores.sigmoid()
        is_class = self.kind in CLASS_KINDS and self.score_kind != "regression"
        return scores.softmax(1) if is_class and self.count > 1 else scores

    def name_scores(self, labels: Sequence[str], network_name: str) -> tuple[str, ...]:
        """The labels, else names such as «class 3»; «no» and «yes» for one score."""
        if self.kind == "binary" and len(labels) == 1:
            return (f"not {labels[0]}", labels[0])
        if self.kind == "positions" and len(labels) == self.count - 1:
            # DETR and its descendants score «nothing here» in a last column without a name.
            return (*labels, "no object")
        if labels:
            if len(labels) != self.count:
                raise SightlineError(
                    f"{network_name} has {self.count} logits, but {len(labels)} labels were given"
                )
            return tuple(labels)
        if self.kind == "binary":
            return ("no", "yes")
        if self.score_kind == "regression" and self.count == 1:
            return ("output",)
        word = {"regression": "output", "embedding": "dimension"}.get(self.score_kind, "class")
        return tuple(f"{word} {i}" for i in range(self.count))


def require_tensor(selected: Any, network_name: str) -> None:
    """Raises SightlineError for an output that is no real tensor with a score for each image."""
    if isinstance(selected, Tensor) and selected.is_complex():
        raise SightlineError(
            f"{network_name} returns complex numbers, which have no order; ask about real ones of "
            "them by a function, such as target=lambda output: output.abs()[:, 0]"
        )
    if isinstance(selected, Tensor) and (selected.is_nested or selected.layout != torch.strided):
        form = "a nested tensor" if selected.is_nested else "a sparse tensor"
        to_plain = "output.to_padded_tensor(0)" if selected.is_nested else "output.to_dense()"
        raise SightlineError(
            f"{network_name} returns {form}; ask about the plain one, with "
            f"target=lambda output: {to_plain}[:, 0]"
        )
    if isinstance(selected, np.ndarray):
        raise SightlineError(
            f"{network_name} returns a NumPy array, which does not tell how it was made; let it "
            "return the tensor, detached or not"
        )
    if isinstance(selected, (bool, int, float, complex)):
        raise SightlineError(
            f"{network_name} returns Python numbers, which do not tell how they were made; let it "
            "return the tensor, detached or not"
        )
    if isinstance(selected, Tensor) and selected.ndim == 0:
        raise SightlineError(
            f"{network_name} returns a single number for the whole batch, as a loss is; pick its "
            "logits with output=, or ask with target=sl.score(function)"
        )
    if not isinstance(selected, Tensor):
        raise SightlineError(
            f"{network_name} returns {type(selected).__name__}, not N×classes; "
            "pick its logits with output="
        )


def invert_sigmoid(probabilities: Tensor) -> Tensor:
    """The logits of independent probabilities."""
    return torch.logit(probabilities, eps=1e-7)
