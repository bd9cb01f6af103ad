"""The smallest change that fools: DeepFool (Moosavi-Dezfooli 2016), FMN (Pintor 2021), and the way back to the boundary."""

import math

import torch
from torch import Tensor

from ..outputs import slope
from .aim import Run, of, rounded
from .ball import DUAL, Norm, column, effective, length, projected

OVERSHOOT, CANDIDATES = 0.02, 10  # DeepFool's, section 3.3 and 4.1
LONGEST, SHORTEST, GROWTH, LEAST_GROWTH = 1.0, 0.01, 0.05, 0.001  # FMN's steps α and relative changes γ of the radius
HALVINGS, ENLARGED = 14, 1.15


# ── DeepFool ──


def deepfool(run: Run, center: Tensor, norm: Norm, steps: int) -> Tensor:
    """Steps to the nearest boundary of the network made linear where the image is, until it fools."""
    found, rows, total = center.clone(), torch.arange(len(center), device=center.device), torch.zeros_like(center)
    for _ in range(steps):
        image = found[rows]
        gaps, pulls, logits = boundaries(run, image, rows)
        stay = ~run.aim.rows(rows).reached(logits)
        if not stay.any():
            break
        rows, gaps, pulls, image = rows[stay], gaps[stay], pulls[stay], image[stay]
        steepness = length(pulls.flatten(0, 1), DUAL[norm]).view_as(gaps).clamp_min(1e-12)
        gap, nearest = (gaps / steepness).min(1)
        pull = pulls[torch.arange(len(rows)), nearest]
        total[rows] += shortest(pull, gap, norm)
        # The paper enlarges the sum of steps once at the end; enlarged in every step it is known when to stop.
        found[rows] = (center[rows] + (1 + OVERSHOOT) * total[rows]).clamp(0, 1)
        if run.tell(-gap, image):
            break
    return found


def shortest(pull: Tensor, gap: Tensor, norm: Norm) -> Tensor:
    """The shortest step over a plane at distance `gap` (in the norm) whose slope is `pull`."""
    gap = column(gap + 1e-5)
    if norm == "linf":
        return gap * pull.sign()
    if norm == "l2":
        return gap * pull / column(length(pull, "l2").clamp_min(1e-12))
    flat = pull.flatten(1)
    steepest = torch.zeros_like(flat).scatter_(1, flat.abs().argmax(1, keepdim=True), 1.0)
    return gap * (flat.sign() * steepest).view_as(pull)


def boundaries(run: Run, image: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How far the scores of the best rivals lie below the answer's, N×k, the slopes of these differences, N×k×3×H×W, and the logits.

    With a target, it is the only rival, of the best other class.
    """
    aim = run.aim.rows(rows)
    with torch.enable_grad():
        leaf = image.detach().requires_grad_()
        logits = run.answers(leaf)
        scores = logits.detach()
        if aim.wanted is None:
            answer = aim.away
            others = scores.scatter(1, answer[:, None], -torch.inf)
            rivals = others.topk(min(CANDIDATES, scores.shape[1]) - 1, dim=1).indices
        else:
            answer = scores.scatter(1, aim.wanted[:, None], -torch.inf).argmax(1)
            rivals = aim.wanted[:, None]
        lead = of(logits, answer)
        pulls = [slope(of(logits, rival) - lead, leaf, "the image", keep=True) for rival in rivals.T]
    run.gradients[rows] += len(pulls)
    gaps = (of(scores, answer)[:, None] - scores.gather(1, rivals)).abs()
    return gaps, torch.stack(pulls, 1).nan_to_num(0, 0, 0), scores


# ── FMN ──


def fmn(run: Run, center: Tensor, norm: Norm, steps: int) -> Tensor:
    """Gradient steps on the margin in a ball that shrinks while the image fools and grows while it does not (algorithm 1)."""
    rows = torch.arange(len(center), device=center.device)
    image, best = center.clone(), center.clone()
    least = torch.full((len(center),), torch.inf, device=center.device)
    radius = least.clone()
    for index in range(steps):
        gradient, margin, logits = run.uphill(image, rows, "margin")
        # The paper takes the whole gradient; what leads out of [0, 1] would let it stop short of the boundary for ever.
        gradient = effective(gradient, image)
        fooled, size = run.aim.reached(logits), length(image - center, norm)
        better = fooled & (size < least)
        best, least = torch.where(better.view(-1, 1, 1, 1), image, best), torch.where(better, size, least)
        change = annealed(GROWTH, LEAST_GROWTH, index / steps)
        distance = margin.abs() / length(gradient, DUAL[norm]).clamp_min(1e-12)
        outside = torch.where(least.isinf(), size + distance, radius) * (1 + change)
        radius = torch.where(fooled, torch.minimum(radius, least) * (1 - change), outside)
        step = annealed(LONGEST, SHORTEST, index / steps) * gradient / column(length(gradient, "l2").clamp_min(1e-12))
        before, image = image, projected(image + step, center, radius, norm)
        if run.tell(margin, before):
            break
    fooled = run.fools(image, rows) & (length(image - center, norm) < least)
    return torch.where(fooled.view(-1, 1, 1, 1), image, best)


def annealed(first: float, last: float, share: float) -> float:
    """Cosine annealing from the first to the last value."""
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2


# ── back to the boundary ──


def nearer(run: Run, center: Tensor, image: Tensor) -> Tensor:
    """The point nearest to `center` on the line to an image that still fools, by halving; an image that does not fool stays.

    It lies beyond the boundary by about 1/16,384 of its way, which the rounding of another batch size does not undo.
    """
    rows = torch.arange(len(center), device=center.device)
    near, far = torch.zeros(len(center), device=center.device), torch.ones(len(center), device=center.device)
    fooled = run.fools(image, rows)
    for _ in range(HALVINGS if fooled.any() else 0):
        middle = (near + far) / 2
        works = run.fools(center + column(middle) * (image - center), rows)
        near, far = torch.where(works, near, middle), torch.where(works, middle, far)
    tried = (center + column(far + 0.5**HALVINGS) * (image - center)).clamp(0, 1)
    return torch.where(column(fooled & run.fools(tried, rows)), tried, image)


def printable(run: Run, center: Tensor, image: Tensor, farthest: float) -> Tensor:
    """The image in 8 bits that fools the network: where rounding undoes a change, it is enlarged step by step, up to `farthest` times."""
    best, factor = rounded(image), 1.0
    left = torch.arange(len(center), device=center.device)
    left = left[run.fools(image, left) & ~run.fools(best, left)]
    while len(left) and (factor := factor * ENLARGED) <= farthest:
        tried = rounded((center[left] + factor * (image[left] - center[left])).clamp(0, 1))
        works = run.fools(tried, left)
        best[left[works]] = tried[works]
        left = left[~works]
    return best
