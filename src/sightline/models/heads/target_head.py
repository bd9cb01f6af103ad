"""The head of a target: one score for each image."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from sightline.errors import SightlineError
from sightline.models.heads.output_head import Head
from sightline.models.layers.placement import ProbedModel

# What it returns is checked: it may be the caller's own function.
ScoreFunction = Callable[[Any, Mapping[str, Tensor], Sequence[int]], Any]


class ScoredModel(ProbedModel, Protocol):
    """What a target asks of a `Model`."""

    @property
    def head(self) -> Head: ...

    @property
    def output_kind(self) -> str: ...

    @property
    def labels(self) -> tuple[str, ...]: ...

    def index(self, label: int | str) -> int: ...

    def layer(self, name: str) -> str: ...

    def shape(self, layer: str) -> tuple[int, ...]: ...

    def fit(self, image: Tensor) -> Tensor: ...

    def run_with_output(
        self, image: Tensor, layers: Sequence[str]
    ) -> tuple[Any, dict[str, Tensor]]: ...


@dataclass(frozen=True)
class TargetHead:
    """A head with a single score, that of a target.

    Attributes:
        description: what messages and captions call the score.
        compute_score: from the network's output, the tensors of `layers` and the images' shape
            N×C×H×W, the score of each image, N.
        layers: layers whose tensors the score needs.
        needs_output: whether it needs the network's output.
    """

    description: str
    compute_score: ScoreFunction
    layers: tuple[str, ...] = ()
    needs_output: bool = True
    kind: str = "target"

    def select(self, output: Any) -> Any:
        """The whole output."""
        return output

    def read_scores(
        self, selected: Any, tensors: Mapping[str, Tensor], image_shape: Sequence[int]
    ) -> Tensor:
        """The score as N×1."""
        score = self.compute_score(selected, tensors, image_shape)
        is_tensor = isinstance(score, Tensor)
        is_score = is_tensor and score.numel() == image_shape[0] and not score.is_complex()
        if not is_score:
            description = tuple(score.shape) if is_tensor else type(score).__name__
            if is_tensor and score.is_complex():
                description = "complex numbers"
            raise SightlineError(
                f"the target must give one number for each of {image_shape[0]} images; "
                f"it gave {description}"
            )
        return score.reshape(-1, 1)

    def to_probabilities(self, scores: Tensor) -> Tensor:
        """The score itself: it is no probability."""
        return scores

    def name_scores(self, labels: Sequence[str], network_name: str) -> tuple[str, ...]:
        """The target's description."""
        del labels, network_name
        return (self.description,)
