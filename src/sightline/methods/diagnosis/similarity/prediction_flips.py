"""Which images two networks answer differently, in groups, and how good both are.

A group is all flips from one class to another, all to one class, or all from one, whichever says
the most with the fewest words; the largest come first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]

# A group that is told by both its classes holds so much of what is told by one of them.
MIN_PAIR_SHARE = 0.6

# Groups smaller than this are told together.
MIN_GROUP_SIZE = 3

# A group of which so much is in larger groups is not told again.
MAX_TOLD_SHARE = 0.7

CALIBRATION_BINS = 15


@dataclass(frozen=True)
class NetworkAnswers:
    """A network's answers for n images: the predicted class and its probability."""

    labels: Labels
    confidence: NDArray[np.float64]


@dataclass(frozen=True)
class FlipGroup:
    """Images that one network answers by one class and the other by another.

    Attributes:
        title: What the flips have in common, such as «church → gas pump».
        old_class: The class before, −1 where there are several.
        new_class: The class after, −1 where there are several.
        members: Positions of the images, the most confident new answers first.
        old_confidence: Mean probability of the old answers.
        new_confidence: Mean probability of the new answers.
        old_right: How many old answers are the true class; None where it isn't known.
        new_right: The same of the new answers.
    """

    title: str
    old_class: int
    new_class: int
    members: NDArray[np.int64]
    old_confidence: float
    new_confidence: float
    old_right: int | None = None
    new_right: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The group, as JSON holds it."""
        return {
            "title": self.title,
            "images": len(self.members),
            "old_confidence": round(self.old_confidence, 4),
            "new_confidence": round(self.new_confidence, 4),
            "old_right": self.old_right,
            "new_right": self.new_right,
        }


@dataclass(frozen=True)
class Performance:
    """How good a network's answers are.

    Attributes:
        accuracy: The share of right answers.
        confidence: The mean probability of its answers.
        calibration_error: The mean gap between confidence and accuracy, over bins of confidence
            (Guo et al. 2017, "On calibration of modern neural networks", equation 3).
        bins: Of each bin that is not empty its images, mean confidence and accuracy.
    """

    accuracy: float
    confidence: float
    calibration_error: float
    bins: tuple[tuple[int, float, float], ...]


def measure_performance(answers: NetworkAnswers, truth: Labels) -> Performance | None:
    """How good the answers are for the images of known class; None where there are none."""
    has_class = truth >= 0
    if not has_class.any():
        return None
    confidence = answers.confidence[has_class]
    is_right = answers.labels[has_class] == truth[has_class]
    bins = bin_answers(confidence, is_right)
    return Performance(
        accuracy=float(is_right.mean()),
        confidence=float(confidence.mean()),
        calibration_error=compute_calibration_error(bins),
        bins=tuple(bins),
    )


def bin_answers(
    confidence: NDArray[np.float64], is_right: NDArray[np.bool_]
) -> list[tuple[int, float, float]]:
    """Images, mean confidence and accuracy of each bin of confidence that is not empty."""
    bin_numbers = np.floor(confidence * CALIBRATION_BINS).astype(np.int64)
    bin_numbers = np.minimum(bin_numbers, CALIBRATION_BINS - 1)
    bins: list[tuple[int, float, float]] = []
    for number in np.unique(bin_numbers).tolist():
        is_inside = bin_numbers == number
        mean_confidence = float(confidence[is_inside].mean())
        accuracy = float(is_right[is_inside].mean())
        bins.append((int(is_inside.sum()), mean_confidence, accuracy))
    return bins


def compute_calibration_error(bins: Sequence[tuple[int, float, float]]) -> float:
    """The mean gap between confidence and accuracy, each bin by the share of its images."""
    image_count = sum(count for count, _, _ in bins)
    gaps = sum(count * abs(confidence - accuracy) for count, confidence, accuracy in bins)
    return gaps / image_count


# ── groups of flips ──


def find_flip_groups(
    old: NetworkAnswers,
    new: NetworkAnswers,
    class_names: Sequence[str],
    truth: Labels | None = None,
    group_count: int = 6,
) -> list[FlipGroup]:
    """The groups of images whose predicted class changes, the largest first.

    `truth` are the true classes, −1 where unknown. Where classes are so many that no group has
    three images, the flips are told by whether they made answers right or wrong.
    """
    flipped = np.flatnonzero(old.labels != new.labels)
    flipped = np.flatnonzero(old.labels != new.labels)
    groups: list[FlipGroup] = []
    covered: set[int] = set()
    for candidate in list_candidates(old.labels, new.labels, flipped):
        members = candidate.members
        if len(groups) == group_count:
            break
        told_share = np.mean([member in covered for member in members.tolist()])
        if len(members) < MIN_GROUP_SIZE or told_share > MAX_TOLD_SHARE:
            continue
        covered.update(members.tolist())
        classes = (candidate.old_class, candidate.new_class)
        title = name_flip(*classes, class_names)
        groups.append(describe_flip_group(title, classes, members, (old, new), truth))
    if truth is not None:
        groups += list_quality_groups(flipped, old, new, truth)
    return groups


@dataclass(frozen=True)
class FlipCandidate:
    """Flips that may make a group.

    Attributes:
        weight: By which the largest comes first.
        old_class: The class before, −1 for any.
        new_class: The class after, −1 for any.
        members: The images.
    """

    weight: float
    old_class: int
    new_class: int
    members: NDArray[np.int64]


def list_candidates(
    old_labels: Labels, new_labels: Labels, flipped: NDArray[np.int64]
) -> list[FlipCandidate]:
    """Possible groups of flips, the largest first.

    A pair of classes stands before all flips to or from one of them where it holds most of these.
    """
    left = old_labels[flipped]
    reached = new_labels[flipped]
    candidates = list_pair_candidates(left, reached, flipped)
    for old_class in np.unique(left).tolist():
        members = flipped[left == old_class]
        candidates.append(FlipCandidate(len(members), old_class, -1, members))
    for new_class in np.unique(reached).tolist():
        members = flipped[reached == new_class]
        candidates.append(FlipCandidate(len(members), -1, new_class, members))
    return sorted(candidates, key=lambda candidate: -candidate.weight)


def list_pair_candidates(
    left: Labels, reached: Labels, flipped: NDArray[np.int64]
) -> list[FlipCandidate]:
    """For each pair of classes the flips from the one to the other.

    A pair that holds most of the flips of both its classes weighs more than each of them.
    """
    candidates: list[FlipCandidate] = []
    for old_class, new_class in np.unique(np.stack([left, reached]), axis=1).T.tolist():
        is_from_old = left == old_class
        is_to_new = reached == new_class
        members = flipped[is_from_old & is_to_new]
        weight = float(len(members))
        larger_class = max(int(is_from_old.sum()), int(is_to_new.sum()))
        if weight >= MIN_PAIR_SHARE * larger_class:
            weight /= MIN_PAIR_SHARE
        candidates.append(FlipCandidate(weight, old_class, new_class, members))
    return candidates


def name_flip(old_class: int, new_class: int, class_names: Sequence[str]) -> str:
    """«church → gas pump», «now gas pump», or «no longer church»."""
    if old_class < 0:
        return f"now {class_names[new_class]}"
    if new_class < 0:
        return f"no longer {class_names[old_class]}"
    return f"{class_names[old_class]} → {class_names[new_class]}"


def list_quality_groups(
    flipped: NDArray[np.int64], old: NetworkAnswers, new: NetworkAnswers, truth: Labels
) -> list[FlipGroup]:
    """All flips that made a right answer wrong, and all that made a wrong one right."""
    flipped = flipped[truth[flipped] >= 0]
    was_right = old.labels[flipped] == truth[flipped]
    is_right = new.labels[flipped] == truth[flipped]
    members_by_title = {
        "right before, wrong now": flipped[was_right & ~is_right],
        "wrong before, right now": flipped[is_right & ~was_right],
    }
    groups: list[FlipGroup] = []
    for title, members in members_by_title.items():
        if len(members) >= MIN_GROUP_SIZE:
            groups.append(describe_flip_group(title, (-1, -1), members, (old, new), truth))
    return groups


def describe_flip_group(
    title: str,
    classes: tuple[int, int],
    members: NDArray[np.int64],
    answers: tuple[NetworkAnswers, NetworkAnswers],
    truth: Labels | None,
) -> FlipGroup:
    """A group with its members in order, and how sure both networks are of them."""
    old, new = answers
    ordered = members[np.argsort(-new.confidence[members], kind="stable")]
    old_right = None
    new_right = None
    if truth is not None:
        old_right = int((old.labels[members] == truth[members]).sum())
        new_right = int((new.labels[members] == truth[members]).sum())
    return FlipGroup(
        title=title,
        old_class=classes[0],
        new_class=classes[1],
        members=ordered,
        old_confidence=float(old.confidence[members].mean()),
        new_confidence=float(new.confidence[members].mean()),
        old_right=old_right,
        new_right=new_right,
    )


def count_flips_by_class(
    old: NetworkAnswers, new: NetworkAnswers, class_count: int
) -> NDArray[np.int64]:
    """For each class how many images leave it, and how many come to it, classes×2."""
    changed = old.labels != new.labels
    left = np.bincount(old.labels[changed], minlength=class_count)
    came = np.bincount(new.labels[changed], minlength=class_count)
    return np.stack([left, came], 1)
