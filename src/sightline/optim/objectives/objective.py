"""What an image should achieve: frozen values with `+ - *`, always to be increased; a loss has a minus.

An objective is also text: `formula.parse(str(objective))` is the same one.
"""

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.errors import SightlineError
from sightline.images.transforms import blur_image
from sightline.models.model import Model
from sightline.models.outputs import reshape_to_unit_grid

ScoreFunction = Callable[[Tensor, Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Objective:
    """`text` names it; `layers` are what it reads; `build(model)` gives a function of an image N×3×H×W and its features
    that returns one score per image, N. Build raises SightlineError for layers, units and labels the model doesn't have.
    `units` are the layer and the units that it asks for, one for each image (of a sum, those of its first part)."""

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
        return combine_operands(
            f"{self} + {parenthesize_objective(other, ' + ', ' - ')}", self, other, operator.add
        )

    def __sub__(self, other: "Objective") -> "Objective":
        if not isinstance(other, Objective):  # pyright: ignore[reportUnnecessaryIsInstance]
            return NotImplemented
        return combine_operands(
            f"{self} - {parenthesize_objective(other, ' + ', ' - ')}", self, other, operator.sub
        )

    def __mul__(self, weight: float) -> "Objective":
        if not isinstance(weight, Real):
            return NotImplemented
        factor = float(weight)
        if not math.isfinite(factor):
            raise SightlineError(f"the weight of {self} is {weight}; it must be a finite number")

        def build(model: Model) -> ScoreFunction:
            score = self.bind(model)
            return lambda image, features: factor * score(image, features)

        return Objective(
            f"{weight} * {parenthesize_objective(self, ' + ', ' - ', ' * ')}",
            self.layers,
            build,
            self.units,
        )

    __rmul__ = __mul__

    def __neg__(self) -> "Objective":
        return -1 * self


def parenthesize_objective(objective: Objective, *signs: str) -> str:
    """Its text, in brackets if it has one of the signs: read back, it is computed in the same order."""
    return f"({objective})" if any(sign in objective.text for sign in signs) else objective.text


def combine_operands(
    text: str, left: Objective, right: Objective, operation: Callable[[Tensor, Tensor], Tensor]
) -> Objective:
    def build(model: Model) -> ScoreFunction:
        one, two = left.bind(model), right.bind(model)
        return lambda image, features: operation(one(image, features), two(image, features))

    return Objective(text, tuple(dict.fromkeys(left.layers + right.layers)), build, left.units)


# ── of the network's answer ──


def logit(label: int | str | tuple[int | str, ...]) -> Objective:
    """The score of a class before the softmax (Simonyan 2013, section 2); of several, one for each image of the batch."""

    def build(model: Model) -> ScoreFunction:
        index = tuple(map(model.index, label)) if isinstance(label, tuple) else model.index(label)
        return lambda _, features: select_unit_per_image(features["logits"], index)

    named = label if isinstance(label, tuple) else ()
    return Objective(f"logit({label!r})", ("logits",), build, ("logits", named))


def cross_entropy(label: int | str | tuple[int | str, ...]) -> Objective:
    """Cross-entropy of the softmax against a class (or one index per image): increasing it drives the image away."""

    def build(model: Model) -> ScoreFunction:
        index = torch.tensor(
            [model.index(one) for one in (label if isinstance(label, tuple) else (label,))],
            device=model.device,
        )

        def score(_: Tensor, features: Mapping[str, Tensor]) -> Tensor:
            logits = features["logits"]
            if len(index) not in (1, len(logits)):
                raise SightlineError(
                    f"cross_entropy has {len(index)} classes for {len(logits)} images; it needs one class or one each"
                )
            return F.cross_entropy(logits, index.expand(len(logits)), reduction="none")

        return score

    return Objective(f"cross_entropy({label!r})", ("logits",), build)


# ── of what happens inside ──


def channel(layer: str, unit: int | tuple[int, ...]) -> Objective:
    """Mean activation of a channel over all positions (Olah 2017); of several channels, one for each image of the batch."""

    def build(model: Model) -> ScoreFunction:
        name = check_layer_units(model, layer, unit)
        return lambda image, features: (
            select_unit_per_image(reshape_to_unit_grid(features[name], image), unit)
            .flatten(1)
            .mean(1)
        )

    return Objective(f"channel({layer!r}, {unit})", (layer,), build, (layer, make_unit_tuple(unit)))


def neuron(
    layer: str, unit: int | tuple[int, ...], row: int | None = None, column: int | None = None
) -> Objective:
    """Activation of a channel at one position, the centre by default; of several channels, one for each image of the batch."""

    def build(model: Model) -> ScoreFunction:
        name = check_layer_units(model, layer, unit)

        def score(image: Tensor, features: Mapping[str, Tensor]) -> Tensor:
            found = select_unit_per_image(reshape_to_unit_grid(features[name], image), unit)
            y, x = (
                size // 2 if at is None else at
                for at, size in zip((row, column), found.shape[1:], strict=True)
            )
            if not (0 <= y < found.shape[1] and 0 <= x < found.shape[2]):
                raise SightlineError(
                    f"{layer} has {found.shape[1]}×{found.shape[2]} positions; there is none at row {y}, column {x}"
                )
            return found[:, y, x]

        return score

    return Objective(
        f"neuron({layer!r}, {unit}, {row}, {column})",
        (layer,),
        build,
        (layer, make_unit_tuple(unit)),
    )


def energy(layer: str) -> Objective:
    """½·mean a² of a layer: its gradient at the layer is the activation itself (DeepDream, Mordvintsev 2015)."""

    def build(model: Model) -> ScoreFunction:
        name = model.layer(layer)
        return lambda _, features: features[name].flatten(1).square().mean(1) / 2

    return Objective(f"energy({layer!r})", (layer,), build)


def make_unit_tuple(unit: int | tuple[int, ...]) -> tuple[int, ...]:
    """One unit as a tuple of one."""
    return unit if isinstance(unit, tuple) else (unit,)


def select_unit_per_image(values: Tensor, unit: int | tuple[int, ...]) -> Tensor:
    """The unit of each image, N×… of N×units×…; of several units each has an equal share of the batch, one after the other."""
    if isinstance(unit, int):
        return values[:, unit]
    if len(values) % len(unit):
        raise SightlineError(
            f"the objective has {len(unit)} units for {len(values)} images; it needs one unit or one each"
        )
    index = torch.tensor(unit, device=values.device).repeat_interleave(len(values) // len(unit))
    return values[torch.arange(len(values), device=values.device), index]


def check_layer_units(model: Model, layer: str, unit: int | tuple[int, ...]) -> str:
    """The layer's own name, once it is known to have these units."""
    name = model.layer(layer)
    shape = (
        model.shape(name)
        if not name.endswith(":in")
        else model.features(model.blank(), name)[name].shape[1:]
    )
    units = reshape_to_unit_grid(torch.empty((1, *shape), device="meta"), model.blank()).shape[1]
    for one in make_unit_tuple(unit):
        if not 0 <= one < units:
            raise SightlineError(f"unit is {one}; {layer} has units 0 to {units - 1}")
    return name


# ── of the image itself ──


def tv(beta: float = 2.0) -> Objective:
    """Total variation, mean over pixels of Σ_channels (dx² + dy²)^(β/2) (Mahendran & Vedaldi 2015, eq. 4; there summed)."""

    def score(image: Tensor, _: Mapping[str, Tensor]) -> Tensor:
        dx = F.pad(image[..., 1:] - image[..., :-1], (0, 1))
        dy = F.pad(image[..., 1:, :] - image[..., :-1, :], (0, 0, 0, 1))
        square = dx.square() + dy.square()
        # The power's slope at zero is infinite for β < 2.
        return (
            (square if beta == 2 else (square + 1e-12) ** (beta / 2) - 1e-12 ** (beta / 2))
            .sum(1)
            .flatten(1)
            .mean(1)
        )

    return Objective(f"tv({beta})", (), lambda _: score)


def l1() -> Objective:
    """Mean distance of the pixels to gray (0.5)."""
    return Objective("l1()", (), lambda _: lambda image, _: (image - 0.5).abs().flatten(1).mean(1))


def bounded(power: float = 6.0) -> Objective:
    """Mean |pixel − gray|^power: the α-norm that keeps pixels in range (Mahendran & Vedaldi 2015, section 3, α = 6; there summed)."""
    return Objective(
        f"bounded({power})",
        (),
        lambda _: lambda image, _: (image - 0.5).abs().pow(power).flatten(1).mean(1),
    )


def roughness(sigma: float = 1.0) -> Objective:
    """½·mean squared distance to a blurred copy, which is taken as given (lucid, objectives.py, blur_input_each_step)."""

    def score(image: Tensor, _: Mapping[str, Tensor]) -> Tensor:
        return (image - blur_image(image.detach(), sigma)).square().flatten(1).mean(1) / 2

    return Objective(f"roughness({sigma})", (), lambda _: score)


def l2() -> Objective:
    """Mean squared distance of the pixels to gray (0.5)."""
    return Objective(
        "l2()", (), lambda _: lambda image, _: (image - 0.5).square().flatten(1).mean(1)
    )
