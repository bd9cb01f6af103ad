"""What an image should achieve: frozen values with `+ - *`.

An objective is always increased; a loss has a minus. It is also text:
`parse_objective(str(objective))` is the same one.
"""

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.errors import SightlineError, check_number_range
from sightline.images.transforms import blur_image
from sightline.models.layers.feature_maps import count_layer_units, reshape_to_unit_grid
from sightline.models.model import Model

T = TypeVar("T")

# The most that a power may be; of values that are not close to 1 it is infinite long before.
MAX_POWER = 100.0
MAX_SIGMA = 100.0

# Takes images N×3×H×W and their features by layer; returns one score per image, N.
ScoreFunction = Callable[[Tensor, Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Objective:
    """A score of images that is to be increased.

    Attributes:
        text: The formula; two objectives are equal when text, layers and units are.
        layers: The layers whose features the score reads.
        build: Makes the score function for one model. Raises SightlineError for layers, units and
            labels that the model doesn't have.
        units: The layer and the units that the score is about, one for each image of the batch.
            Of a sum, those of its first term.
    """

    text: str
    layers: tuple[str, ...]
    build: Callable[[Model], ScoreFunction] = field(compare=False, repr=False)
    units: tuple[str, tuple[int | str, ...]] = ("", ())

    def __str__(self) -> str:
        return self.text

    def bind(self, model: Model) -> ScoreFunction:
        """The score function for one model."""
        return self.build(model)

    def __add__(self, other: "Objective") -> "Objective":
        if not isinstance(other, Objective):  # pyright: ignore[reportUnnecessaryIsInstance]
            return NotImplemented
        text = f"{self} + {parenthesize_objective(other, ' + ', ' - ')}"
        return combine_operands(text, self, other, operator.add)

    def __sub__(self, other: "Objective") -> "Objective":
        if not isinstance(other, Objective):  # pyright: ignore[reportUnnecessaryIsInstance]
            return NotImplemented
        text = f"{self} - {parenthesize_objective(other, ' + ', ' - ')}"
        return combine_operands(text, self, other, operator.sub)

    def __mul__(self, weight: float) -> "Objective":
        if not isinstance(weight, Real):
            return NotImplemented
        factor = float(weight)
        if not math.isfinite(factor):
            raise SightlineError(f"the weight of {self} is {weight}; it must be a finite number")

        def build(model: Model) -> ScoreFunction:
            score = self.bind(model)
            return lambda image, features: factor * score(image, features)

        text = f"{weight} * {parenthesize_objective(self, ' + ', ' - ', ' * ')}"
        return Objective(text, self.layers, build, self.units)

    __rmul__ = __mul__

    def __neg__(self) -> "Objective":
        return -1 * self


def parenthesize_objective(objective: Objective, *operators: str) -> str:
    """The objective's text, in parentheses if it contains one of the operators.

    Parsed again, it is then computed in the same order.
    """
    if any(symbol in objective.text for symbol in operators):
        return f"({objective})"
    return objective.text


def combine_operands(
    text: str,
    first: Objective,
    second: Objective,
    operation: Callable[[Tensor, Tensor], Tensor],
) -> Objective:
    """The objective whose scores are `operation` of the scores of two."""

    def build(model: Model) -> ScoreFunction:
        first_score = first.bind(model)
        second_score = second.bind(model)
        return lambda image, features: operation(
            first_score(image, features), second_score(image, features)
        )

    layers = tuple(dict.fromkeys(first.layers + second.layers))
    return Objective(text, layers, build, first.units)


# ── objectives of the output ──


def logit(label: int | str | tuple[int | str, ...]) -> Objective:
    """The score of a class before the softmax (Simonyan 2013, section 2).

    With several labels, one for each image of the batch.
    """

    def build(model: Model) -> ScoreFunction:
        if isinstance(label, tuple):
            unit = tuple(model.index(item) for item in label)
        else:
            unit = model.index(label)
        return lambda _, features: select_unit_per_image(features["logits"], unit)

    labels = label if isinstance(label, tuple) else ()
    return Objective(f"logit({label!r})", ("logits",), build, ("logits", labels))


def cross_entropy(label: int | str | tuple[int | str, ...]) -> Objective:
    """Cross-entropy of the softmax against a class; increasing it drives the image away from it.

    With several labels, one for each image of the batch.
    """

    def build(model: Model) -> ScoreFunction:
        classes = [model.index(item) for item in ensure_tuple(label)]
        index = torch.tensor(classes, device=model.device)

        def score(_: Tensor, features: Mapping[str, Tensor]) -> Tensor:
            logits = features["logits"]
            if len(index) not in (1, len(logits)):
                raise SightlineError(
                    f"cross_entropy has {len(index)} classes for {len(logits)} images; "
                    "give one class, or one for each image"
                )
            return F.cross_entropy(logits, index.expand(len(logits)), reduction="none")

        return score

    return Objective(f"cross_entropy({label!r})", ("logits",), build)


# ── objectives of features ──


def channel(layer: str, unit: int | tuple[int, ...]) -> Objective:
    """Mean activation of a channel over all positions (Olah 2017).

    With several channels, one for each image of the batch.
    """

    def build(model: Model) -> ScoreFunction:
        name = check_layer_units(model, layer, unit)

        def score(image: Tensor, features: Mapping[str, Tensor]) -> Tensor:
            grid = reshape_to_unit_grid(features[name], image, model, name)
            return average_per_image(select_unit_per_image(grid, unit))

        return score

    text = f"channel({layer!r}, {unit})"
    return Objective(text, (layer,), build, (layer, ensure_tuple(unit)))


def neuron(
    layer: str, unit: int | tuple[int, ...], row: int | None = None, column: int | None = None
) -> Objective:
    """Activation of a channel at one position, by default the centre.

    With several channels, one for each image of the batch.
    """

    def build(model: Model) -> ScoreFunction:
        name = check_layer_units(model, layer, unit)

        def score(image: Tensor, features: Mapping[str, Tensor]) -> Tensor:
            grid = reshape_to_unit_grid(features[name], image, model, name)
            activations = select_unit_per_image(grid, unit)

            row_count, column_count = activations.shape[1:]
            y = row_count // 2 if row is None else row
            x = column_count // 2 if column is None else column
            if not (0 <= y < row_count and 0 <= x < column_count):
                raise SightlineError(
                    f"{layer} has {row_count}×{column_count} positions; "
                    f"there is none at row {y}, column {x}"
                )
            return activations[:, y, x]

        return score

    text = f"neuron({layer!r}, {unit}, {row}, {column})"
    return Objective(text, (layer,), build, (layer, ensure_tuple(unit)))


def energy(layer: str) -> Objective:
    """½·mean a² of a layer; its gradient there is a itself (DeepDream, Mordvintsev 2015)."""

    def build(model: Model) -> ScoreFunction:
        name = model.layer(layer)
        return lambda _, features: average_per_image(features[name].square()) / 2

    return Objective(f"energy({layer!r})", (layer,), build)


# ── objectives of the image itself ──


def tv(beta: float = 2.0) -> Objective:
    """Total variation: mean over pixels of Σ_channels (dx² + dy²)^(β/2).

    Mahendran & Vedaldi 2015, eq. 4, sum over the pixels instead.
    """
    check_number_range("beta of tv", beta, 0, MAX_POWER)

    def score(image: Tensor, _: Mapping[str, Tensor]) -> Tensor:
        # Beyond the last row and column nothing changes.
        dx = image[..., 1:] - image[..., :-1]
        dx = F.pad(dx, (0, 1))
        dy = image[..., 1:, :] - image[..., :-1, :]
        dy = F.pad(dy, (0, 0, 0, 1))

        variation = dx.square() + dy.square()
        if beta != 2:
            # The offset keeps the derivative of the power finite at zero, where β < 2.
            offset = 1e-12
            power = beta / 2
            variation = (variation + offset) ** power - offset**power
        return average_per_image(variation.sum(1))

    return Objective(f"tv({beta})", (), lambda _: score)


def l1() -> Objective:
    """Mean distance of the pixels to gray (0.5)."""

    def score(image: Tensor, _: Mapping[str, Tensor]) -> Tensor:
        return average_per_image((image - 0.5).abs())

    return Objective("l1()", (), lambda _: score)


def bounded(power: float = 6.0) -> Objective:
    """Mean |pixel − gray|^power: the α-norm that keeps pixels in range.

    Mahendran & Vedaldi 2015, section 3, with α = 6, sum over the pixels instead.
    """
    check_number_range("power of bounded", power, 0, MAX_POWER)

    def score(image: Tensor, _: Mapping[str, Tensor]) -> Tensor:
        return average_per_image((image - 0.5).abs().pow(power))

    return Objective(f"bounded({power})", (), lambda _: score)


def roughness(sigma: float = 1.0) -> Objective:
    """½·mean squared distance to a blurred copy, which counts as constant.

    As in lucid (objectives.py, blur_input_each_step).
    """
    check_number_range("sigma of roughness", sigma, 0, MAX_SIGMA)

    def score(image: Tensor, _: Mapping[str, Tensor]) -> Tensor:
        blurred = blur_image(image.detach(), sigma)
        return average_per_image((image - blurred).square()) / 2

    return Objective(f"roughness({sigma})", (), lambda _: score)


def l2() -> Objective:
    """Mean squared distance of the pixels to gray (0.5)."""

    def score(image: Tensor, _: Mapping[str, Tensor]) -> Tensor:
        return average_per_image((image - 0.5).square())

    return Objective("l2()", (), lambda _: score)


# ── shared by the objectives ──


def average_per_image(values: Tensor) -> Tensor:
    """The mean of each image's values, N, of N×…"""
    return values.flatten(1).mean(1)


def ensure_tuple(value: T | tuple[T, ...]) -> tuple[T, ...]:
    """A single value as a tuple of one."""
    return value if isinstance(value, tuple) else (value,)


def select_unit_per_image(values: Tensor, unit: int | tuple[int, ...]) -> Tensor:
    """The unit of each image, N×…, of N×units×…

    Several units have equal shares of the batch, one after the other.
    """
    if isinstance(unit, int):
        return values[:, unit]
    if not unit or len(values) % len(unit):
        raise SightlineError(
            f"the objective has {len(unit)} units for {len(values)} images; "
            "give one unit, or one for each image"
        )
    images_per_unit = len(values) // len(unit)
    units = torch.tensor(unit, device=values.device).repeat_interleave(images_per_unit)
    return values[torch.arange(len(values), device=values.device), units]


def check_layer_units(model: Model, layer: str, unit: int | tuple[int, ...]) -> str:
    """The layer's canonical name. Raises SightlineError if it doesn't have the units."""
    name = model.layer(layer)
    unit_count = count_layer_units(model, name)
    for index in ensure_tuple(unit):
        if not 0 <= index < unit_count:
            raise SightlineError(f"unit is {index}; {layer} has units 0 to {unit_count - 1}")
    return name
