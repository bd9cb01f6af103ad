"""What the numbers of the trust test mean, in plain sentences, by the limits in this file.

The limits are this project's own; the papers set none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

# How many of the tests an attribution passes: all, some, or none. "empty" has nothing to test.
TrustLevel = Literal["strong", "weak", "failed", "empty"]

# The area under a curve differs from chance if it is further away than this.
AREA_MARGIN = 0.02

# A correlation, or an explained share, counts if it is at least this much better than chance.
CORRELATION_MARGIN = 0.1

# The attribution is lost in randomized networks if the median rank correlation with it is less than
# this above chance, or above 0 if chance is lower.
LOST_MARGIN = 0.2

# From this rank correlation on an attribution barely changes in randomized networks, and stays
# partly the same under noise or another seed.
SIMILAR_CORRELATION = 0.5

# From this rank correlation on it stays the same under noise or another seed.
STABLE_CORRELATION = 0.8


@dataclass(frozen=True)
class SummaryScores:
    """The numbers of one image that the short verdict is written from.

    `randomized_rank` is the median over the stages of the randomization; a single stage can leave a
    dead network with an empty attribution. `stability_of` is "seed" or "noise".
    """

    is_constant: bool
    deletion_auc: float
    deletion_auc_chance: float
    insertion_auc: float
    insertion_auc_chance: float
    randomized_rank: float
    rank_chance: float
    stability_rank: float
    stability_of: str

    @property
    def is_lost_when_randomized(self) -> bool:
        """Whether randomized networks give another attribution."""
        # A shifted attribution can be less similar than an unrelated one: its chance below 0 is no
        # baseline.
        return self.randomized_rank < max(self.rank_chance, 0) + LOST_MARGIN

    @property
    def is_kept_when_randomized(self) -> bool:
        """Whether randomized networks give nearly the same attribution."""
        return self.randomized_rank >= SIMILAR_CORRELATION


@dataclass(frozen=True)
class TrustScores(SummaryScores):
    """The numbers of one image that the full verdict is written from.

    `sensitivity` is the mean over subset sizes, `unexplained` the share that infidelity leaves,
    `fully_randomized_rank` the rank correlation at the last stage of the randomization.
    """

    sensitivity: float
    sensitivity_chance: float
    unexplained: float
    unexplained_chance: float
    fully_randomized_rank: float


# ── the full verdict ──


def write_verdicts(name: str, scores: TrustScores) -> list[str]:
    """One sentence for each test of one image; a single one for a constant attribution."""
    if scores.is_constant:
        return [describe_constant_attribution(name)]
    return [
        describe_deletion(scores),
        describe_insertion(scores),
        describe_sensitivity(scores),
        describe_infidelity(scores),
        describe_randomization(name, scores),
        describe_stability(scores),
    ]


def describe_constant_attribution(name: str) -> str:
    """The sentence for an attribution that is the same everywhere."""
    return f"The attribution of {name} is the same everywhere: there is nothing in it to test."


def describe_deletion(scores: SummaryScores) -> str:
    """The deletion curve in words; a smaller area is better."""
    gain = scores.deletion_auc_chance - scores.deletion_auc
    return (
        "Removing the brightest pixels lowers the probability "
        f"{compare_speed(gain)} removing those of the shifted attribution "
        f"(area {scores.deletion_auc:z.2f}, chance {scores.deletion_auc_chance:z.2f})."
    )


def describe_insertion(scores: SummaryScores) -> str:
    """The insertion curve in words; a larger area is better."""
    gain = scores.insertion_auc - scores.insertion_auc_chance
    return (
        f"Sharpening them first raises it {compare_speed(gain)} sharpening those of the "
        f"shifted attribution (area {scores.insertion_auc:z.2f}, "
        f"chance {scores.insertion_auc_chance:z.2f})."
    )


def compare_speed(gain: float) -> str:
    """How a curve compares with chance, by the gain in area."""
    if gain > AREA_MARGIN:
        return "faster than"
    if gain < -AREA_MARGIN:
        return "more slowly than"
    return "no faster than"


def describe_sensitivity(scores: TrustScores) -> str:
    """Sensitivity-n in words."""
    is_better = scores.sensitivity >= scores.sensitivity_chance + CORRELATION_MARGIN
    verb = "predicts" if is_better else "does not predict"
    return (
        f"Summed over scattered squares, the attribution {verb} how far the score falls without "
        f"them (correlation {scores.sensitivity:z.2f}, chance {scores.sensitivity_chance:z.2f})."
    )


def describe_infidelity(scores: TrustScores) -> str:
    """Infidelity in words, by the share of the drops that is explained."""
    explained = 1 - scores.unexplained
    chance = 1 - scores.unexplained_chance
    if explained >= chance + CORRELATION_MARGIN:
        comparison = "better than"
    elif explained <= chance - CORRELATION_MARGIN:
        comparison = "worse than"
    else:
        comparison = "no better than"
    return (
        f"It explains {explained:z.0%} of what covering one square does, {comparison} the shifted "
        f"attribution ({chance:z.0%})."
    )


def describe_randomization(name: str, scores: TrustScores) -> str:
    """The cascading randomization in words."""
    numbers = (
        f"(median rank correlation {scores.randomized_rank:z.2f}, with all layers shuffled "
        f"{scores.fully_randomized_rank:z.2f}, chance {scores.rank_chance:z.2f})"
    )
    if scores.is_lost_when_randomized:
        return (
            f"The attribution of {name} is lost when the network is randomized {numbers}: "
            "it depends on the values of the weights. An untrained network passes this test, too."
        )
    if scores.is_kept_when_randomized:
        return (
            f"The attribution of {name} barely changes when the network is randomized {numbers}: "
            "do not read it as evidence about the class."
        )
    return (
        f"The attribution of {name} keeps part of its pattern when the network is randomized "
        f"{numbers}: that part does not depend on the values of the weights."
    )


def describe_stability(scores: SummaryScores) -> str:
    """Stability in words."""
    variation = "another seed" if scores.stability_of == "seed" else "a little noise on the image"
    if scores.stability_rank >= STABLE_CORRELATION:
        change = "stays the same"
    elif scores.stability_rank >= SIMILAR_CORRELATION:
        change = "stays partly the same"
    else:
        change = "becomes another one"
    return (
        f"With {variation} the attribution {change} "
        f"(rank correlation {scores.stability_rank:z.2f})."
    )


# ── the short verdict ──


def write_short_verdict(name: str, scores: SummaryScores) -> str:
    """The verdict in a sentence or two, by the curves, the cascade and the repetition."""
    if scores.is_constant:
        return describe_constant_attribution(name)
    is_faithful, faithfulness = summarize_curves(scores)
    conjunction = "and" if is_faithful == scores.is_lost_when_randomized else "but"
    randomization = summarize_randomization(scores)
    sentence = f"The attribution of {name} {faithfulness}, {conjunction} {randomization}."
    if scores.stability_rank < SIMILAR_CORRELATION:
        variation = "another seed" if scores.stability_of == "seed" else "a little noise"
        sentence += f" It hardly survives {variation}."
    return sentence


def rate_trust(scores: SummaryScores) -> TrustLevel:
    """The short verdict as one word."""
    if scores.is_constant:
        return "empty"
    is_faithful, _ = summarize_curves(scores)
    is_stable = scores.stability_rank >= SIMILAR_CORRELATION
    if is_faithful and scores.is_lost_when_randomized and is_stable:
        return "strong"
    if is_faithful or scores.is_lost_when_randomized:
        return "weak"
    return "failed"


def summarize_curves(scores: SummaryScores) -> tuple[bool, str]:
    """Whether deletion and insertion together beat chance, and a predicate that says so."""
    gains = (
        scores.deletion_auc_chance - scores.deletion_auc,
        scores.insertion_auc - scores.insertion_auc_chance,
    )
    better_count = sum(gain > AREA_MARGIN for gain in gains)
    worse_count = sum(gain < -AREA_MARGIN for gain in gains)
    if better_count and not worse_count:
        return True, "finds what the score depends on better than chance"
    if better_count:
        return False, "disagrees with itself on what the score depends on"
    if worse_count == len(gains):
        return False, "points away from what the score depends on"
    return False, "finds what the score depends on no better than chance"


def summarize_randomization(scores: SummaryScores) -> str:
    """A predicate for the cascading randomization."""
    if scores.is_lost_when_randomized:
        return "is lost when the network is randomized, as it should be"
    if scores.is_kept_when_randomized:
        return (
            "barely changes when the network is randomized: "
            "do not read it as evidence about the class"
        )
    return (
        "keeps part of its pattern when the network is randomized, "
        "which does not depend on the values of the weights"
    )


# ── captions ──


def write_trust_captions(
    name: str, label: str, verdicts: Sequence[str], empty_count: int, stages: Sequence[str]
) -> dict[str, str]:
    """The captions of both panels, with the sentences of the first image.

    `empty_count` of the attributions of the randomized networks are 0 everywhere.
    """
    empty_note = ""
    if empty_count:
        verb = "is" if empty_count == 1 else "are"
        empty_note = f"; {empty_count} of these {len(stages)} {verb} empty"
    curves = (
        f"The attribution of {name} for {label}. Left and middle: probability of the class when "
        "pixels are removed, or made sharp, in the order of the attribution (chance: the same "
        "attribution, shifted at random). Right: rank correlation with the attributions of "
        f"randomized networks. {' '.join(verdicts[:4])}"
    )
    maps = (
        "Image, the attribution, and the attribution of the network after its layers' weights are "
        f"shuffled from the output down, one more each time: {', '.join(stages)}. Each on its own "
        f"scale up to its 99th percentile{empty_note}. {' '.join(verdicts[4:])}"
    )
    return {"curves": curves, "maps": maps.rstrip()}
