"""What the numbers of a map's tests say, in plain sentences, by limits that stand here.

A curve's area differs from chance when it is more than `MARGIN` away. A correlation or a share counts when it is `SOME` or more
better than chance. A map is lost in randomized networks when its median rank correlation over the stages is less than `UNLIKE` above
chance (or above 0, if chance is less), else it barely changes from `LIKE` on. Under noise or another seed it stays the same from
`STABLE` on, partly from `LIKE` on. The limits are this house's, not the papers', which set none.
"""

from collections.abc import Mapping, Sequence
from typing import Any

AREA_MARGIN = 0.02

CORRELATION_MARGIN = 0.1

SIMILAR_CORRELATION = 0.5

LOST_MARGIN = 0.2

STABLE_CORRELATION = 0.8


def write_verdicts(name: str, results: Mapping[str, Any]) -> list[str]:
    """One sentence for each test of one image; a single one for a map that is the same everywhere."""
    if results["map"].min() == results["map"].max():
        return [f"The map of {name} is the same everywhere: there is nothing in it to test."]
    return [
        describe_deletion(results),
        describe_insertion(results),
        describe_sensitivity(results),
        describe_infidelity(results),
        describe_randomization(name, results),
        describe_stability(results),
    ]


def describe_deletion(results: Mapping[str, Any]) -> str:
    """The deletion curve in words."""
    auc, chance = float(results["deletion_auc"]), float(results["deletion_auc_chance"])
    how = (
        "faster than"
        if auc < chance - AREA_MARGIN
        else "more slowly than"
        if auc > chance + AREA_MARGIN
        else "no faster than"
    )
    return f"Removing the brightest pixels lowers the probability {how} removing those of the shifted map (area {auc:.2f}, chance {chance:.2f})."


def describe_insertion(results: Mapping[str, Any]) -> str:
    """The insertion curve in words."""
    auc, chance = float(results["insertion_auc"]), float(results["insertion_auc_chance"])
    how = (
        "faster than"
        if auc > chance + AREA_MARGIN
        else "more slowly than"
        if auc < chance - AREA_MARGIN
        else "no faster than"
    )
    return f"Sharpening them first raises it {how} sharpening those of the shifted map (area {auc:.2f}, chance {chance:.2f})."


def describe_sensitivity(results: Mapping[str, Any]) -> str:
    """Sensitivity-n in words, by the mean over n."""
    mean, chance = float(results["sensitivity"].mean()), float(results["sensitivity_chance"].mean())
    how = "tells" if mean >= chance + CORRELATION_MARGIN else "does not tell"
    return f"Added up over scattered squares, the map {how} what they count for the score (correlation {mean:.2f}, chance {chance:.2f})."


def describe_infidelity(results: Mapping[str, Any]) -> str:
    """Infidelity in words."""
    share, chance = 1 - float(results["unexplained"]), 1 - float(results["unexplained_chance"])
    how = (
        "better than"
        if share >= chance + CORRELATION_MARGIN
        else "worse than"
        if share <= chance - CORRELATION_MARGIN
        else "no better than"
    )
    return f"It explains {share:.0%} of what covering one square does, {how} the shifted map ({chance:.0%})."


def describe_randomization(name: str, results: Mapping[str, Any]) -> str:
    """The cascading randomization in words, by the median over its stages: a single draw can leave a dead network with an empty map."""
    middle, last, chance = (
        float(value)
        for value in (
            results["cascade_rank"].quantile(0.5),
            results["cascade_rank"][-1],
            results["rank_chance"],
        )
    )
    told = f"(median rank correlation {middle:.2f}, with all layers shuffled {last:.2f}, chance {chance:.2f})"
    if (
        middle < max(chance, 0) + LOST_MARGIN
    ):  # a shifted map can be anything but alike, which is no floor to stand on
        return f"The map of {name} is lost when the network is randomized {told}: it comes from what was learned."
    if middle >= SIMILAR_CORRELATION:
        return f"The map of {name} barely changes when the network is randomized {told}: do not read it as evidence about the class."
    return f"The map of {name} keeps part of its pattern when the network is randomized {told}: that part does not come from what was learned."


def describe_stability(results: Mapping[str, Any]) -> str:
    """Stability in words."""
    rank = float(results["stability_rank"])
    of = "another seed" if results["stability_of"] == "seed" else "a trace of noise on the image"
    return f"With {of} the map stays {'the same' if rank >= STABLE_CORRELATION else 'partly the same' if rank >= SIMILAR_CORRELATION else 'hardly the same'} (rank correlation {rank:.2f})."


def write_short_verdict(name: str, results: Mapping[str, Any]) -> str:
    """The verdict in a sentence or two, by the curves, the cascade and the repetition."""
    if results["map"].min() == results["map"].max():
        return f"The map of {name} is the same everywhere: there is nothing in it to test."
    gain = (
        results["deletion_auc_chance"] - results["deletion_auc"],
        results["insertion_auc"] - results["insertion_auc_chance"],
    )
    better, worse = (
        sum(float(one) > AREA_MARGIN for one in gain),
        sum(float(one) < -AREA_MARGIN for one in gain),
    )
    middle, chance = (
        float(results["cascade_rank"].quantile(0.5)),
        max(float(results["rank_chance"]), 0),
    )
    points = better == 2 or (better == 1 and not worse)
    how = (
        "finds what the score depends on better than chance"
        if points
        else "disagrees with itself on what the score depends on"
        if better and worse
        else "points away from what the score depends on"
        if worse == 2
        else "finds what the score depends on no better than chance"
    )
    lost, kept = middle < chance + LOST_MARGIN, middle >= SIMILAR_CORRELATION
    then = (
        "is lost when the network is randomized, as it should be"
        if lost
        else "barely changes when the network is randomized: do not read it as evidence about the class"
        if kept
        else "keeps part of its pattern when the network is randomized, which does not come from what was learned"
    )
    rank, of = (
        float(results["stability_rank"]),
        "another seed" if results["stability_of"] == "seed" else "a trace of noise",
    )
    shaky = "" if rank >= SIMILAR_CORRELATION else f" It hardly survives {of}."
    return f"The map of {name} {how}, {'and' if points == lost else 'but'} {then}.{shaky}"


def write_trust_captions(
    name: str, label: str, results: Mapping[str, Any], layers: Sequence[str]
) -> dict[str, str]:
    """The captions of both panels, with the sentences of the first image."""
    sentences, empty = results["verdict"], int(results["empty"])
    blank = (
        f"; {empty} of these {len(layers)} {'is' if empty == 1 else 'are'} empty" if empty else ""
    )
    curves = (
        f"The map of {name} for {label}. Left and middle: probability of the class when pixels are removed, or made sharp, in the order of the map "
        f"(chance: the same map, shifted at random). Right: rank correlation with the maps of randomized networks. {' '.join(sentences[:4])}"
    )
    maps = (
        f"Image, the map, and the map of the network after its layers' weights are shuffled from the answer down, one more each time: {', '.join(layers)}. "
        f"Each on its own scale up to its 99th percentile{blank}. {' '.join(sentences[4:])}".rstrip()
    )
    return {"curves": curves, "maps": maps}
