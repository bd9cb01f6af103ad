"""Attacks that look for the smallest change: DeepFool (Moosavi-Dezfooli 2016), FMN (Pintor 2021);
and the bisection on the line back to the clean image."""

import math

import torch
from torch import Tensor

from sightline.methods.adversarial.attacks.goal import (
    AttackRun,
    round_to_8_bits,
    select_class_scores,
)
from sightline.methods.adversarial.attacks.norm_ball import (
    DUAL_NORMS,
    Norm,
    compute_image_norms,
    keep_feasible_gradient,
    project_onto_ball,
    reshape_per_image,
)
from sightline.models.heads.gradients import differentiate_scores

# DeepFool, sections 3.3 and 4.1.
DEEPFOOL_OVERSHOOT = 0.02
DEEPFOOL_CANDIDATES = 10

# FMN: step sizes α and relative changes γ of the radius.
FMN_FIRST_STEP_SIZE = 1.0
FMN_LAST_STEP_SIZE = 0.01
FMN_FIRST_RADIUS_CHANGE = 0.05
FMN_LAST_RADIUS_CHANGE = 0.001

BOUNDARY_HALVINGS = 14
ENLARGEMENT_FACTOR = 1.15

# ── DeepFool ──


def run_deepfool(run: AttackRun, center: Tensor, norm: Norm, steps: int) -> Tensor:
    """Steps to the nearest boundary of the linearized network until each image reaches its goal."""
    result = center.clone()
    rows = torch.arange(len(center), device=center.device)
    total_step = torch.zeros_like(center)

    for _ in range(steps):
        image = result[rows]
        gaps, gradients, logits = linearize_boundaries(run, image, rows)
        is_remaining = ~run.goal.select_images(rows).is_reached(logits)
        if not is_remaining.any():
            break
        rows = rows[is_remaining]
        gaps = gaps[is_remaining]
        gradients = gradients[is_remaining]
        image = image[is_remaining]

        gradient_norms = compute_image_norms(gradients.flatten(0, 1), DUAL_NORMS[norm])
        distances = gaps / gradient_norms.view_as(gaps).clamp_min(1e-12)
        distance, nearest = distances.min(1)
        gradient = gradients[torch.arange(len(rows)), nearest]
        total_step[rows] += find_shortest_step(gradient, distance, norm)
        # Departure: the paper enlarges the sum of steps once, at the end. Enlarging it in every
        # step shows when to stop.
        overshot_step = (1 + DEEPFOOL_OVERSHOOT) * total_step[rows]
        result[rows] = (center[rows] + overshot_step).clamp(0, 1)
        if run.report_step(-distance, image):
            break
    return result


def find_shortest_step(gradient: Tensor, distance: Tensor, norm: Norm) -> Tensor:
    """The shortest step across a plane, by its normal, N×3×H×W, and its distance in `norm`, N."""
    distance = reshape_per_image(distance + 1e-5)
    if norm == "linf":
        return distance * gradient.sign()
    if norm == "l2":
        length = compute_image_norms(gradient, "l2").clamp_min(1e-12)
        return distance * gradient / reshape_per_image(length)
    flat = gradient.flatten(1)
    largest = flat.abs().argmax(1, keepdim=True)
    is_largest = torch.zeros_like(flat).scatter_(1, largest, 1.0)
    return distance * (flat.sign() * is_largest).view_as(gradient)


def linearize_boundaries(
    run: AttackRun, image: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The boundaries to the best rival classes, by the gradient where the image is.

    Gives how far each rival's score lies below the current class's, N×k, the gradients of these
    differences, N×k×C×H×W, and the logits, N×classes. With a target, the target is the only rival
    and the best other class counts as the current one. Where there is one boundary, k is 1.
    """
    goal = run.goal.select_images(rows)
    with torch.enable_grad():
        leaf = image.detach().requires_grad_()
        logits = run.compute_logits(leaf)
        scores = logits.detach()
        crossing = goal.measure_crossing(logits)
        if crossing is not None:
            gradient = differentiate_scores(crossing, leaf, "the image")
            run.gradient_counts[rows] += 1
            return crossing.detach().abs()[:, None], gradient.nan_to_num(0, 0, 0)[:, None], scores
        if goal.target_labels is None:
            current = goal.source_labels
            rival_count = min(DEEPFOOL_CANDIDATES, scores.shape[1]) - 1
            rival_scores = scores.scatter(1, current[:, None], -torch.inf)
            rivals = rival_scores.topk(rival_count, dim=1).indices
        else:
            current = scores.scatter(1, goal.target_labels[:, None], -torch.inf).argmax(1)
            rivals = goal.target_labels[:, None]

        current_score = select_class_scores(logits, current)
        gradients: list[Tensor] = []
        for rival in rivals.T:
            difference = select_class_scores(logits, rival) - current_score
            gradients.append(differentiate_scores(difference, leaf, "the image", retain_graph=True))
    run.gradient_counts[rows] += len(gradients)
    gaps = select_class_scores(scores, current)[:, None] - scores.gather(1, rivals)
    return gaps.abs(), torch.stack(gradients, 1).nan_to_num(0, 0, 0), scores


# ── FMN ──


def run_fmn(run: AttackRun, center: Tensor, norm: Norm, steps: int) -> Tensor:
    """FMN (algorithm 1): gradient steps on the margin, projected onto a ball of changing radius.

    The radius shrinks while the image reaches its goal and grows while it does not.
    """
    rows = torch.arange(len(center), device=center.device)
    image = center.clone()
    best_image = center.clone()
    best_distance = center.new_full((len(center),), torch.inf)
    radius = best_distance.clone()

    for step_index in range(steps):
        gradient, margin, logits = run.compute_gradient(image, rows, "margin")
        # Departure: the paper takes the whole gradient. What leads out of [0, 1] would keep the
        # image from ever reaching the boundary.
        gradient = keep_feasible_gradient(gradient, image)
        is_fooled = run.goal.is_reached(logits)
        distance = compute_image_norms(image - center, norm)

        is_better = is_fooled & (distance < best_distance)
        best_image = torch.where(is_better.view(-1, 1, 1, 1), image, best_image)
        best_distance = torch.where(is_better, distance, best_distance)

        # Until the first success, the boundary is expected at margin/‖gradient‖. Departure: that
        # first radius grows by 1 + γ, too.
        progress = step_index / steps
        change = anneal_by_cosine(FMN_FIRST_RADIUS_CHANGE, FMN_LAST_RADIUS_CHANGE, progress)
        gradient_norm = compute_image_norms(gradient, DUAL_NORMS[norm]).clamp_min(1e-12)
        boundary_distance = distance + margin.abs() / gradient_norm
        grown = torch.where(best_distance.isinf(), boundary_distance, radius) * (1 + change)
        shrunk = torch.minimum(radius, best_distance) * (1 - change)
        radius = torch.where(is_fooled, shrunk, grown)

        step_size = anneal_by_cosine(FMN_FIRST_STEP_SIZE, FMN_LAST_STEP_SIZE, progress)
        gradient_length = compute_image_norms(gradient, "l2").clamp_min(1e-12)
        step = step_size * gradient / reshape_per_image(gradient_length)
        previous_image = image
        image = project_onto_ball(image + step, center, radius, norm)
        if run.report_step(margin, previous_image):
            break

    is_closer = compute_image_norms(image - center, norm) < best_distance
    is_last_best = run.is_fooled(image, rows) & is_closer
    return torch.where(is_last_best.view(-1, 1, 1, 1), image, best_image)


def anneal_by_cosine(first: float, last: float, progress: float) -> float:
    """Cosine annealing from `first` at progress 0 to `last` at progress 1."""
    wave = math.cos(math.pi * progress)
    return last + (first - last) * (1 + wave) / 2


# ── back to the boundary ──


def bisect_to_boundary(run: AttackRun, center: Tensor, image: Tensor) -> Tensor:
    """The point nearest to `center` on the line to `image` that reaches the goal, by bisection.

    An image that does not reach its goal stays. The result lies about 1/16,384 of the line beyond
    the boundary, so that the rounding errors of another batch size do not undo it.
    """
    rows = torch.arange(len(center), device=center.device)
    # Fractions of the line: the largest found to be on the clean side, the smallest beyond.
    clean_side = center.new_zeros(len(center))
    fooled_side = center.new_ones(len(center))

    is_fooled = run.is_fooled(image, rows)
    halvings = BOUNDARY_HALVINGS if is_fooled.any() else 0
    for _ in range(halvings):
        middle = (clean_side + fooled_side) / 2
        middle_image = center + reshape_per_image(middle) * (image - center)
        is_middle_fooled = run.is_fooled(middle_image, rows)
        clean_side = torch.where(is_middle_fooled, clean_side, middle)
        fooled_side = torch.where(is_middle_fooled, middle, fooled_side)

    fraction = reshape_per_image(fooled_side + 0.5**BOUNDARY_HALVINGS)
    candidate = (center + fraction * (image - center)).clamp(0, 1)
    is_improved = is_fooled & run.is_fooled(candidate, rows)
    return torch.where(reshape_per_image(is_improved), candidate, image)


def round_adversarial_image(
    run: AttackRun, center: Tensor, image: Tensor, max_enlargement: float
) -> Tensor:
    """The images in 8 bits, still reaching their goal where possible.

    Where rounding undoes a change, the change is enlarged step by step, up to `max_enlargement`
    times.
    """
    rounded = round_to_8_bits(image)
    rows = torch.arange(len(center), device=center.device)
    undone_rows = rows[run.is_fooled(image, rows) & ~run.is_fooled(rounded, rows)]

    factor = ENLARGEMENT_FACTOR
    while len(undone_rows) and factor <= max_enlargement:
        change = image[undone_rows] - center[undone_rows]
        candidates = round_to_8_bits((center[undone_rows] + factor * change).clamp(0, 1))
        is_enough = run.is_fooled(candidates, undone_rows)
        rounded[undone_rows[is_enough]] = candidates[is_enough]
        undone_rows = undone_rows[~is_enough]
        factor *= ENLARGEMENT_FACTOR
    return rounded
