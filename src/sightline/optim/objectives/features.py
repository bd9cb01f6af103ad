"""Objectives in the space of a layer's features: towards a direction, towards an image, away from each other."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.errors import SightlineError
from sightline.images.io import resize_image, resolve_image
from sightline.models.model import Model
from sightline.models.outputs import reshape_to_unit_grid
from sightline.optim.objectives.objective import Objective, ScoreFunction

MIN_COSINE = 0.1  # lucid, objectives.py: below it the power would end all gradient


def direction(layer: str, vector: tuple[float, ...], power: float = 0.0) -> Objective:
    """Mean over positions of the features' dot product with a vector of one number per unit, times max(0.1, cosine)^power
    (Carter 2019, activation atlas, has power 2 to 4)."""
    numbers = convert_vector_to_tuple(vector)

    def build(model: Model) -> ScoreFunction:
        toward = build_feature_direction(model, layer, numbers)
        return lambda image, features: compute_cosine_weighted_dot(
            reshape_to_unit_grid(features[model.layer(layer)], image), toward, power
        )

    return Objective(f"direction({layer!r}, {numbers}, {power})", (layer,), build)


def cosine(layer: str, vector: tuple[float, ...]) -> Objective:
    """Mean over positions of the cosine between the features and a vector of one number per unit."""
    numbers = convert_vector_to_tuple(vector)

    def build(model: Model) -> ScoreFunction:
        toward = build_feature_direction(model, layer, numbers)
        return lambda image, features: (
            F.cosine_similarity(
                reshape_to_unit_grid(features[model.layer(layer)], image), toward, 1
            )
            .flatten(1)
            .mean(1)
        )

    return Objective(f"cosine({layer!r}, {numbers})", (layer,), build)


def content(layer: str, picture: Tensor | str | Path) -> Objective:
    """Minus the squared distance to the features of a picture, relative to their size (Gatys 2016; Mahendran & Vedaldi 2015)."""

    def score(found: Tensor, wanted: Tensor) -> Tensor:
        wanted = wanted.expand_as(found)
        return -(found - wanted).flatten(1).square().sum(1) / wanted.flatten(1).square().sum(
            1
        ).clamp_min(1e-12)

    return build_feature_comparison("content", layer, picture, "", score)


def caricature(layer: str, picture: Tensor | str | Path, power: float = 1.0) -> Objective:
    """Dot product with a picture's own features at every place, times max(0.1, cosine)^power: what the layer sees in it, overdone
    (lucid, recipes/caricature.py)."""
    return build_feature_comparison(
        "caricature",
        layer,
        picture,
        f", {power}",
        lambda found, wanted: compute_cosine_weighted_dot(found, wanted, power),
    )


def diversity(layer: str, group: int = 0) -> Objective:
    """How alike the styles of the images of a batch are: the sum of cosines between an image's Gram matrix and the others' of its
    group of so many images, one after the other (0: the whole batch). Subtract it (Olah 2017, "diversity")."""

    def build(model: Model) -> ScoreFunction:
        name = model.layer(layer)

        def score(image: Tensor, features: Mapping[str, Tensor]) -> Tensor:
            maps = reshape_to_unit_grid(features[name], image).flatten(2)
            grams = F.normalize((maps @ maps.transpose(1, 2)).flatten(1), dim=1).unflatten(
                0, (-1, group or len(maps))
            )
            return ((grams @ grams.transpose(1, 2)).sum(2) - 1).flatten()

        return score

    return Objective(f"diversity({layer!r}, {group})", (layer,), build)


def compute_cosine_weighted_dot(features: Tensor, target: Tensor, power: float) -> Tensor:
    """Mean over positions of dot·max(0.1, cos)^power of N×units×rows×columns."""
    dot = (features * target).sum(1)
    if power:
        dot = dot * F.cosine_similarity(features, target, 1).clamp_min(MIN_COSINE) ** power
    return dot.flatten(1).mean(1)


def convert_vector_to_tuple(vector: Sequence[float] | Tensor) -> tuple[float, ...]:
    """The vector as numbers that text can hold."""
    numbers = vector.flatten().tolist() if isinstance(vector, Tensor) else vector
    return tuple(float(number) for number in numbers)


def build_feature_direction(model: Model, layer: str, numbers: tuple[float, ...]) -> Tensor:
    """The vector as 1×units×1×1, once it is known to fit the layer."""
    units = reshape_to_unit_grid(
        torch.empty((1, *model.shape(layer)), device="meta"), model.blank()
    ).shape[1]
    if len(numbers) != units:
        raise SightlineError(f"the vector has {len(numbers)} numbers; {layer} has {units} units")
    return torch.tensor(numbers, device=model.device).view(1, -1, 1, 1)


def build_feature_comparison(
    objective_name: str,
    layer: str,
    picture: Tensor | str | Path,
    arguments_text: str,
    score_features: Callable[[Tensor, Tensor], Tensor],
) -> Objective:
    """An objective that compares features with those of a picture, brought to the same size."""
    given = resolve_image(picture)
    shown = (
        f"'an image of {given.shape[2]}×{given.shape[3]} pixels'"
        if isinstance(picture, Tensor)
        else repr(str(picture))
    )

    def build(model: Model) -> ScoreFunction:
        name, kept = model.layer(layer), dict[tuple[int, int], Tensor]()

        def compare(image: Tensor, features: Mapping[str, Tensor]) -> Tensor:
            height, width = image.shape[-2:]
            if (height, width) not in kept:
                with torch.no_grad():
                    sized = resize_image(given.to(model.device), height, width)
                    kept[height, width] = reshape_to_unit_grid(
                        model.run(sized, [name])[name], image
                    )
            return score_features(reshape_to_unit_grid(features[name], image), kept[height, width])

        return compare

    return Objective(f"{objective_name}({layer!r}, {shown}{arguments_text})", (layer,), build)
