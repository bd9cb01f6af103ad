"""Groups of mistakes: regions of feature space where a network is wrong more often than it thinks.

A network is unsure near the border of two classes, and wrong there as often as its confidence says.
What needs a cause is a region where it is wrong more often than that. Regions are parts of the
images that one class is predicted for, by a mixture over their features (Eyuboglu et al. 2022,
"Domino", fits one mixture to features, labels and predictions of all images; here labels are left
out, so that a region does not know which of its images are wrong).

What a confidence stands for is read from the images that the network takes for its other classes.
It is not equally right everywhere: regions of these classes are off by more than chance, too. So
each region's excess is divided by what a region of its size is off by. It stands beside chance: the
largest excess of any region when errors are drawn anew by the network's own confidence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_GROUP_ERRORS = 5

# Parts that the images of one predicted class are divided into, at most.
MAX_PARTS = 4

# Dimensions that features are reduced to.
MAX_DIMENSIONS = 24

# Times that errors are drawn anew.
SHUFFLES = 1000

# Draws whose errors are in memory at once.
DRAW_BLOCK = 100

# Networks without a shortcut have regions that chance alone gives once in a hundred times: what is
# confused with what is more uneven than the classes' own regions tell.
MAX_P_VALUE = 0.002

# Of two groups that share so many errors only the stronger is shown.
MAX_OVERLAP = 0.5


@dataclass(frozen=True)
class ErrorGroup:
    """Wrong answers of one class in one region of feature space. Images are positions.

    Attributes:
        predicted: The class that the images are taken for.
        members: The wrong images of the region, the most confident first.
        region: All images of the region, right ones too.
        class_count: How many images the class is predicted for.
        error_share: The share of wrong answers in the region.
        expected_share: The same by the network's confidence.
        excess: How far they are apart, in standard deviations that count how unevenly the network's
            confidence is calibrated.
        p_value: How often chance gives as large an excess in any region.
    """

    predicted: int
    members: NDArray[np.int64]
    region: NDArray[np.int64]
    class_count: int
    error_share: float
    expected_share: float
    excess: float
    p_value: float

    def to_json(self) -> dict[str, Any]:
        """The group's numbers, as JSON holds them."""
        return {
            "wrong": len(self.members),
            "images": len(self.region),
            "error_share": round(self.error_share, 4),
            "expected_share": round(self.expected_share, 4),
            "excess": round(self.excess, 2),
            "p_value": round(self.p_value, 4),
        }


@dataclass(frozen=True)
class ErrorBaseline:
    """What the errors of regions are compared with: the network's other classes.

    Attributes:
        expected: The share of errors that each image's confidence stands for, n; 0 for images of
            classes without a region.
        excess: By how many standard deviations each region has more errors than that.
    """

    expected: NDArray[np.float64]
    excess: NDArray[np.float64]


def measure_baseline(
    regions: Sequence[NDArray[np.int64]],
    predicted: NDArray[np.int64],
    confidence: NDArray[np.float64],
    is_wrong: NDArray[np.bool_],
) -> ErrorBaseline:
    """How many more errors each region has than the network's other classes let expect.

    Regions of one class are compared with the images and the regions of the others.
    """
    errors = is_wrong[None].astype(np.float64)
    region_labels = np.array([predicted[region[0]] for region in regions])
    expected = np.zeros(len(predicted))
    excess = np.zeros(len(regions))
    for label in np.unique(region_labels).tolist():
        is_label = predicted == label
        is_other = np.logical_not(is_label)
        if not is_other.any():
            is_other = is_label
        label_expected = calibrate_errors(confidence, is_wrong, is_other)
        expected[is_label] = label_expected[is_label]
        label_excess = measure_excess(regions, errors, label_expected)[0]
        variances = sum_variances(regions, label_expected)
        is_own = region_labels == label
        unevenness = measure_unevenness(label_excess[~is_own], variances[~is_own])
        spreads = np.sqrt(1 + unevenness * variances)
        excess[is_own] = label_excess[is_own] / spreads[is_own]
    return ErrorBaseline(expected, excess)


def sum_variances(
    regions: Sequence[NDArray[np.int64]], expected: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The variance of each region's number of errors, if each error is drawn by its share."""
    variance = expected * (1 - expected)
    return np.array([variance[region].sum() for region in regions])


def measure_unevenness(excess: NDArray[np.float64], variances: NDArray[np.float64]) -> float:
    """By how much regions are off beyond chance: the variance of an offset to the log odds.

    A region of variance v whose log odds are off by an offset of variance u has an excess of
    variance 1 + u·v.
    """
    if not len(excess):
        return 0.0
    return max(0.0, float((np.square(excess) - 1).sum() / variances.sum()))


def calibrate_errors(
    confidence: NDArray[np.float64],
    is_wrong: NDArray[np.bool_],
    is_known: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """The share of errors that each image's confidence stands for, by isotonic regression.

    It is fitted to the known images. At least 0.01 and at most 0.99, so that no single error is
    impossible.
    """
    from sklearn.isotonic import IsotonicRegression

    regression = IsotonicRegression(increasing=False, out_of_bounds="clip")
    regression.fit(confidence[is_known], is_wrong[is_known].astype(np.float64))
    expected = np.asarray(regression.predict(confidence), dtype=np.float64)
    return expected.clip(0.01, 0.99)


def find_error_groups(
    features: NDArray[np.floating],
    predicted: NDArray[np.int64],
    confidence: NDArray[np.float64],
    is_wrong: NDArray[np.bool_],
    *,
    group_count: int = 6,
    seed: int = 0,
) -> list[ErrorGroup]:
    """The groups of n images' errors that are beyond chance, the strongest first.

    Args:
        features: n×d.
        predicted: The predicted class, n.
        confidence: Its probability, n.
        is_wrong: Whether it is not the true class, n.
        group_count: At most so many.
        seed: Of the mixtures and of chance.
    """
    reduced = reduce_features(features, seed)
    regions = list_regions(reduced, predicted, is_wrong, seed)
    if not regions:
        return []
    baseline = measure_baseline(regions, predicted, confidence, is_wrong)
    expected = baseline.expected
    excess = baseline.excess
    largest = draw_largest_excess(regions, expected, seed)
    groups: list[ErrorGroup] = []
    covered: set[int] = set()
    for index in np.argsort(-excess, kind="stable").tolist():
        region = regions[index]
        members = region[is_wrong[region]]
        p_value = (1 + int((largest >= excess[index]).sum())) / (1 + len(largest))
        if p_value > MAX_P_VALUE or len(groups) == group_count:
            break
        overlap = sum(int(member) in covered for member in members)
        if len(members) < MIN_GROUP_ERRORS or overlap > MAX_OVERLAP * len(members):
            continue
        covered.update(map(int, members))
        groups.append(
            ErrorGroup(
                predicted=int(predicted[region[0]]),
                members=members[np.argsort(-confidence[members], kind="stable")],
                region=region,
                class_count=int((predicted == predicted[region[0]]).sum()),
                error_share=float(is_wrong[region].mean()),
                expected_share=float(expected[region].mean()),
                excess=float(excess[index]),
                p_value=p_value,
            )
        )
    return groups


def count_tested_classes(predicted: NDArray[np.int64], is_wrong: NDArray[np.bool_]) -> int:
    """How many classes are predicted for enough wrong images to make a group."""
    _, counts = np.unique(predicted[is_wrong], return_counts=True)
    return int((counts >= MIN_GROUP_ERRORS).sum())


def reduce_features(features: NDArray[np.floating], seed: int = 0) -> NDArray[np.float64]:
    """Features as principal components that hold most of their variance, n×at most 24."""
    from sklearn.decomposition import PCA

    values = features.astype(np.float64)
    values -= values.mean(0)
    dimensions = min(MAX_DIMENSIONS, *values.shape)
    return PCA(dimensions, random_state=seed).fit_transform(values)


def list_regions(
    reduced: NDArray[np.float64],
    predicted: NDArray[np.int64],
    is_wrong: NDArray[np.bool_],
    seed: int,
) -> list[NDArray[np.int64]]:
    """The images that a class is predicted for, and their parts by mixtures of 2 to 4."""
    regions: list[NDArray[np.int64]] = []
    for label in np.unique(predicted).tolist():
        images = np.flatnonzero(predicted == label)
        if is_wrong[images].sum() < MIN_GROUP_ERRORS:
            continue
        regions.append(images)
        for part_count in range(2, MAX_PARTS + 1):
            if len(images) < 4 * MIN_GROUP_ERRORS * part_count:
                break
            assignment = split_images(reduced[images], part_count, seed)
            for number in range(part_count):
                region = images[assignment == number]
                if is_wrong[region].sum() >= MIN_GROUP_ERRORS:
                    regions.append(region)
    return regions


def split_images(reduced: NDArray[np.float64], part_count: int, seed: int) -> NDArray[np.int64]:
    """The part of each image by a mixture of Gaussians with one spread for each dimension."""
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(
        part_count, covariance_type="diag", reg_covar=1e-4, n_init=2, random_state=seed
    )
    return np.asarray(mixture.fit_predict(reduced), dtype=np.int64)


def measure_excess(
    regions: Sequence[NDArray[np.int64]],
    errors: NDArray[np.float64],
    expected: NDArray[np.float64],
) -> NDArray[np.float64]:
    """By how many standard deviations each region has more errors than expected.

    `errors` are draws×n, the result is draws×regions. They are signed roots of the deviance of a
    binomial distribution: a few errors among confident images are no rarer than they seem, as they
    would be if the excess were divided by its standard deviation.
    """
    columns: list[NDArray[np.float64]] = []
    for region in regions:
        error_counts = errors[:, region].sum(1)
        expected_count = float(expected[region].sum())
        columns.append(score_count(error_counts, expected_count, len(region)))
    return np.stack(columns, 1)


def score_count(
    counts: NDArray[np.float64], expected_count: float, image_count: int
) -> NDArray[np.float64]:
    """How many standard deviations counts out of so many images are above the expected one."""
    from scipy.special import xlogy

    right_counts = image_count - counts
    error_gain = xlogy(counts, counts / expected_count)
    right_gain = xlogy(right_counts, right_counts / (image_count - expected_count))
    deviance = 2 * (error_gain + right_gain)
    return np.sign(counts - expected_count) * np.sqrt(deviance.clip(min=0))


def draw_largest_excess(
    regions: Sequence[NDArray[np.int64]], expected: NDArray[np.float64], seed: int
) -> NDArray[np.float64]:
    """The largest excess of any region, for errors drawn by the expected shares."""
    generator = np.random.default_rng(seed)
    blocks: list[NDArray[np.float64]] = []
    for _ in range(0, SHUFFLES, DRAW_BLOCK):
        draws = generator.random((DRAW_BLOCK, len(expected))) < expected
        excess = measure_excess(regions, draws.astype(np.float64), expected)
        blocks.append(excess.max(1))
    return np.concatenate(blocks)
