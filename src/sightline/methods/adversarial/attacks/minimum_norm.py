"""The smallest change that fools: DeepFool (Moosavi-Dezfooli 2016), FMN (Pintor 2021), and the way back to the boundary."""

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
from sightline.models.outputs import differentiate_scores

DEEPFOOL_OVERSHOOT, DEEPFOOL_CANDIDATES = 0.02, 10  # DeepFool's, section 3.3 and 4.1

FMN_FIRST_STEP_SIZE, FMN_LAST_STEP_SIZE, FMN_FIRST_RADIUS_CHANGE, FMN_LAST_RADIUS_CHANGE = (
    1.0,
    0.01,
    0.05,
    0.001,
)  # FMN's steps α and relative changes γ of the radius

BOUNDARY_HALVINGS, ENLARGEMENT_FACTOR = 14, 1.15

# ── DeepFool ──


def run_deepfool(run: AttackRun, center: Tensor, norm: Norm, steps: int) -> Tensor:
    """Steps to the nearest boundary of the network made linear where the image is, until it fools."""
    found, rows, total = (
        center.clone(),
        torch.arange(len(center), device=center.device),
        torch.zeros_like(center),
    )
    for _ in range(steps):
        image = found[rows]
        gaps, pulls, logits = linearize_boundaries(run, image, rows)
        stay = ~run.goal.select_images(rows).is_reached(logits)
        if not stay.any():
            break
        rows, gaps, pulls, image = rows[stay], gaps[stay], pulls[stay], image[stay]
        steepness = (
            compute_image_norms(pulls.flatten(0, 1), DUAL_NORMS[norm])
            .view_as(gaps)
            .clamp_min(1e-12)
        )
        gap, nearest = (gaps / steepness).min(1)
        pull = pulls[torch.arange(len(rows)), nearest]
        total[rows] += find_shortest_step(pull, gap, norm)
        # The paper enlarges the sum of steps once at the end; enlarged in every step it is known when to stop.
        found[rows] = (center[rows] + (1 + DEEPFOOL_OVERSHOOT) * total[rows]).clamp(0, 1)
        if run.report_step(-gap, image):
            break
    return found


def find_shortest_step(gradient: Tensor, distance: Tensor, norm: Norm) -> Tensor:
    """The shortest step over a plane at distance `gap` (in the norm) whose slope is `pull`."""
    distance = reshape_per_image(distance + 1e-5)
    if norm == "linf":
        return distance * gradient.sign()
    if norm == "l2":
        return (
            distance
            * gradient
            / reshape_per_image(compute_image_norms(gradient, "l2").clamp_min(1e-12))
        )
    flat = gradient.flatten(1)
    steepest = torch.zeros_like(flat).scatter_(1, flat.abs().argmax(1, keepdim=True), 1.0)
    return distance * (flat.sign() * steepest).view_as(gradient)


def linearize_boundaries(
    run: AttackRun, image: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """How far the scores of the best rivals lie below the answer's, N×k, the slopes of these differences, N×k×3×H×W, and the logits.

    With a target, it is the only rival, of the best other class.
    """
    aim = run.goal.select_images(rows)
    with torch.enable_grad():
        leaf = image.detach().requires_grad_()
        logits = run.compute_logits(leaf)
        scores = logits.detach()
        if aim.target_labels is None:
            answer = aim.source_labels
            others = scores.scatter(1, answer[:, None], -torch.inf)
            rivals = others.topk(min(DEEPFOOL_CANDIDATES, scores.shape[1]) - 1, dim=1).indices
        else:
            answer = scores.scatter(1, aim.target_labels[:, None], -torch.inf).argmax(1)
            rivals = aim.target_labels[:, None]
        lead = select_class_scores(logits, answer)
        pulls = [
            differentiate_scores(
                select_class_scores(logits, rival) - lead, leaf, "the image", retain_graph=True
            )
            for rival in rivals.T
        ]
    run.gradient_counts[rows] += len(pulls)
    gaps = (select_class_scores(scores, answer)[:, None] - scores.gather(1, rivals)).abs()
    return gaps, torch.stack(pulls, 1).nan_to_num(0, 0, 0), scores


# ── FMN ──


def run_fmn(run: AttackRun, center: Tensor, norm: Norm, steps: int) -> Tensor:
    """Gradient steps on the margin in a ball that shrinks while the image fools and grows while it does not (algorithm 1)."""
    rows = torch.arange(len(center), device=center.device)
    image, best = center.clone(), center.clone()
    least = torch.full((len(center),), torch.inf, device=center.device)
    radius = least.clone()
    for index in range(steps):
        gradient, margin, logits = run.compute_gradient(image, rows, "margin")
        # The paper takes the whole gradient; what leads out of [0, 1] would let it stop short of the boundary for ever.
        gradient = keep_feasible_gradient(gradient, image)
        fooled, size = run.goal.is_reached(logits), compute_image_norms(image - center, norm)
        better = fooled & (size < least)
        best, least = (
            torch.where(better.view(-1, 1, 1, 1), image, best),
            torch.where(better, size, least),
        )
        change = anneal_by_cosine(FMN_FIRST_RADIUS_CHANGE, FMN_LAST_RADIUS_CHANGE, index / steps)
        distance = margin.abs() / compute_image_norms(gradient, DUAL_NORMS[norm]).clamp_min(1e-12)
        outside = torch.where(least.isinf(), size + distance, radius) * (1 + change)
        radius = torch.where(fooled, torch.minimum(radius, least) * (1 - change), outside)
        step = (
            anneal_by_cosine(FMN_FIRST_STEP_SIZE, FMN_LAST_STEP_SIZE, index / steps)
            * gradient
            / reshape_per_image(compute_image_norms(gradient, "l2").clamp_min(1e-12))
        )
        before, image = image, project_onto_ball(image + step, center, radius, norm)
        if run.report_step(margin, before):
            break
    fooled = run.is_fooled(image, rows) & (compute_image_norms(image - center, norm) < least)
    return torch.where(fooled.view(-1, 1, 1, 1), image, best)


def anneal_by_cosine(first: float, last: float, progress: float) -> float:
    """Cosine annealing from the first to the last value."""
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2


# ── back to the boundary ──


def bisect_to_boundary(run: AttackRun, center: Tensor, image: Tensor) -> Tensor:
    """The point nearest to `center` on the line to an image that still fools, by halving; an image that does not fool stays.

    It lies beyond the boundary by about 1/16,384 of its way, which the rounding of another batch size does not undo.
    """
    rows = torch.arange(len(center), device=center.device)
    near, far = (
        torch.zeros(len(center), device=center.device),
        torch.ones(len(center), device=center.device),
    )
    fooled = run.is_fooled(image, rows)
    for _ in range(BOUNDARY_HALVINGS if fooled.any() else 0):
        middle = (near + far) / 2
        works = run.is_fooled(center + reshape_per_image(middle) * (image - center), rows)
        near, far = torch.where(works, near, middle), torch.where(works, middle, far)
    tried = (center + reshape_per_image(far + 0.5**BOUNDARY_HALVINGS) * (image - center)).clamp(
        0, 1
    )
    return torch.where(reshape_per_image(fooled & run.is_fooled(tried, rows)), tried, image)


def round_adversarial_image(
    run: AttackRun, center: Tensor, image: Tensor, max_enlargement: float
) -> Tensor:
    """The image in 8 bits that fools the network: where rounding undoes a change, it is enlarged step by step, up to `farthest` times."""
    best, factor = round_to_8_bits(image), 1.0
    left = torch.arange(len(center), device=center.device)
    left = left[run.is_fooled(image, left) & ~run.is_fooled(best, left)]
    while len(left) and (factor := factor * ENLARGEMENT_FACTOR) <= max_enlargement:
        tried = round_to_8_bits((center[left] + factor * (image[left] - center[left])).clamp(0, 1))
        works = run.is_fooled(tried, left)
        best[left[works]] = tried[works]
        left = left[~works]
    return best
