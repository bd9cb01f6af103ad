"""Objectives in a layer's feature space: a direction, an image's features, diversity."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.errors import SightlineError, check_number_range
from sightline.images.io.pictures import resolve_image
from sightline.images.transforms import resize_image
from sightline.models.layers.feature_maps import count_layer_units, reshape_to_unit_grid
from sightline.models.model import Model
from sightline.optim.objectives.objective import (
    MAX_POWER,
    Objective,
    ScoreFunction,
    average_per_image,
)

# The cosine is clamped from below: its power would otherwise leave no gradient
# (lucid, objectives.py).
MIN_COSINE = 0.1

MAX_GROUP_SIZE = 100_000


def direction(layer: str, vector: tuple[float, ...], power: float = 0.0) -> Objective:
    """Mean over positions of the features' dot product with a vector, times max(0.1, cosine)^power.

    The vector has one number for each unit. Activation atlases use powers of 2 to 4 (Carter 2019).
    """
    check_number_range("power of direction", power, -MAX_POWER, MAX_POWER)
    numbers = convert_vector_to_tuple(vector)

    def build(model: Model) -> ScoreFunction:
        name = model.layer(layer)
        target = build_feature_direction(model, layer, numbers)

        def score(image: Tensor, features: Mapping[str, Tensor]) -> Tensor:
            grid = reshape_to_unit_grid(features[name], image, model, name)
            return compute_cosine_weighted_dot(grid, target, power)

        return score

    return Objective(f"direction({layer!r}, {numbers}, {power})", (layer,), build)


def cosine(layer: str, vector: tuple[float, ...]) -> Objective:
    """Mean over positions of the cosine between the features and a vector.

    The vector has one number for each unit.
    """
    numbers = convert_vector_to_tuple(vector)

    def build(model: Model) -> ScoreFunction:
        name = model.layer(layer)
        target = build_feature_direction(model, layer, numbers)

        def score(image: Tensor, features: Mapping[str, Tensor]) -> Tensor:
            grid = reshape_to_unit_grid(features[name], image, model, name)
            return average_per_image(F.cosine_similarity(grid, target, 1))

        return score

    return Objective(f"cosine({layer!r}, {numbers})", (layer,), build)


def content(layer: str, picture: Tensor | str | Path) -> Objective:
    """Minus the squared distance to a picture's features, relative to their squared norm.

    Gatys 2016; Mahendran & Vedaldi 2015.
    """

    def score_features(features: Tensor, target: Tensor) -> Tensor:
        flat_target = target.expand_as(features).flatten(1)
        difference = features.flatten(1) - flat_target
        squared_distance = difference.square().sum(1)
        squared_norm = flat_target.square().sum(1)
        return -squared_distance / squared_norm.clamp_min(1e-12)

    return build_feature_comparison("content", layer, picture, "", score_features)


def caricature(layer: str, picture: Tensor | str | Path, power: float = 1.0) -> Objective:
    """Mean over positions of the dot product with a picture's features, times max(0.1, cos)^power.

    It exaggerates what the layer responds to in the picture (lucid, recipes/caricature.py).
    """
    check_number_range("power of caricature", power, -MAX_POWER, MAX_POWER)

    def score_features(features: Tensor, target: Tensor) -> Tensor:
        return compute_cosine_weighted_dot(features, target, power)

    return build_feature_comparison("caricature", layer, picture, f", {power}", score_features)


def diversity(layer: str, group: int = 0) -> Objective:
    """How similar in style an image is to the others of its group; subtract it for diversity.

    The sum of cosines between the image's Gram matrix and those of the other images (Olah 2017,
    "diversity"). `group` consecutive images form a group; with 0 the batch is one group.
    """
    check_number_range("group of diversity", group, 0, MAX_GROUP_SIZE)

    def build(model: Model) -> ScoreFunction:
        name = model.layer(layer)

        def score(image: Tensor, features: Mapping[str, Tensor]) -> Tensor:
            maps = reshape_to_unit_grid(features[name], image, model, name).flatten(2)
            grams = maps @ maps.transpose(1, 2)
            directions = F.normalize(grams.flatten(1), dim=1)

            # groups × images of a group × entries of the Gram matrix
            group_size = group or len(maps)
            if len(maps) % group_size:
                raise SightlineError(
                    f"diversity has groups of {group_size} for {len(maps)} images; "
                    "the images must fill whole groups"
                )
            grouped = directions.unflatten(0, (-1, group_size))
            cosines = grouped @ grouped.transpose(1, 2)
            # Minus each image's cosine with itself.
            return (cosines.sum(2) - 1).flatten()

        return score

    return Objective(f"diversity({layer!r}, {group})", (layer,), build)


def compute_cosine_weighted_dot(features: Tensor, target: Tensor, power: float) -> Tensor:
    """Mean over positions of dot·max(0.1, cos)^power of features N×units×rows×columns."""
    dot = (features * target).sum(1)
    if power:
        similarity = F.cosine_similarity(features, target, 1)
        dot = dot * similarity.clamp_min(MIN_COSINE) ** power
    return average_per_image(dot)


def convert_vector_to_tuple(vector: Sequence[float] | Tensor) -> tuple[float, ...]:
    """The vector as plain numbers, which the objective's text can hold."""
    numbers = vector.flatten().tolist() if isinstance(vector, Tensor) else vector
    return tuple(float(number) for number in numbers)


def build_feature_direction(model: Model, layer: str, numbers: tuple[float, ...]) -> Tensor:
    """The vector as 1×units×1×1. Raises SightlineError if it doesn't fit the layer."""
    unit_count = count_layer_units(model, model.layer(layer))
    if len(numbers) != unit_count:
        raise SightlineError(
            f"the vector has {len(numbers)} numbers; {layer} has {unit_count} units"
        )
    return torch.tensor(numbers, device=model.device).view(1, -1, 1, 1)


def build_feature_comparison(
    objective_name: str,
    layer: str,
    picture: Tensor | str | Path,
    arguments_text: str,
    score_features: Callable[[Tensor, Tensor], Tensor],
) -> Objective:
    """An objective that compares features with those of a picture at the image's size."""
    reference = resolve_image(picture)
    if isinstance(picture, Tensor):
        height, width = reference.shape[2:]
        picture_text = f"'an image of {height}×{width} pixels'"
    else:
        picture_text = repr(str(picture))

    def build(model: Model) -> ScoreFunction:
        name = model.layer(layer)
        targets_by_size: dict[tuple[int, int], Tensor] = {}

        @torch.no_grad()
        def compute_target(image: Tensor) -> Tensor:
            height, width = image.shape[-2:]
            resized = resize_image(reference.to(model.device), height, width)
            features = model.run(resized, [name])
            return reshape_to_unit_grid(features[name], resized)

        def score(image: Tensor, features: Mapping[str, Tensor]) -> Tensor:
            size = (image.shape[-2], image.shape[-1])
            if size not in targets_by_size:
                targets_by_size[size] = compute_target(image)
            grid = reshape_to_unit_grid(features[name], image, model, name)
            return score_features(grid, targets_by_size[size])

        return score

    text = f"{objective_name}({layer!r}, {picture_text}{arguments_text})"
    return Objective(text, (layer,), build)
