"""What the numbers of a map's tests say, in plain sentences, by limits that stand here.

A curve's area differs from chance when it is more than `MARGIN` away. A correlation or a share counts when it is `SOME` or more
better than chance. A map is lost in randomized networks when its median rank correlation over the stages is less than `UNLIKE` above
chance (or above 0, if chance is less), else it barely changes from `LIKE` on. Under noise or another seed it stays the same from
`STABLE` on, partly from `LIKE` on. The limits are this house's, not the papers', which set none.
"""

from collections.abc import Mapping, Sequence
from typing import Any

MARGIN = 0.02
SOME = 0.1
LIKE = 0.5
UNLIKE = 0.2
STABLE = 0.8


def verdicts(name: str, found: Mapping[str, Any]) -> list[str]:
    """One sentence for each test of one image; a single one for a map that is the same everywhere."""
    if found["map"].min() == found["map"].max():
        return [f"The map of {name} is the same everywhere: there is nothing in it to test."]
    return [removed(found), inserted(found), summed(found), erased(found), randomized(name, found), repeated(found)]


def removed(found: Mapping[str, Any]) -> str:
    """The deletion curve in words."""
    auc, chance = float(found["deletion_auc"]), float(found["deletion_auc_chance"])
    how = "faster than" if auc < chance - MARGIN else "more slowly than" if auc > chance + MARGIN else "no faster than"
    return f"Removing the brightest pixels lowers the probability {how} removing those of the shifted map (area {auc:.2f}, chance {chance:.2f})."


def inserted(found: Mapping[str, Any]) -> str:
    """The insertion curve in words."""
    auc, chance = float(found["insertion_auc"]), float(found["insertion_auc_chance"])
    how = "faster than" if auc > chance + MARGIN else "more slowly than" if auc < chance - MARGIN else "no faster than"
    return f"Sharpening them first raises it {how} sharpening those of the shifted map (area {auc:.2f}, chance {chance:.2f})."


def summed(found: Mapping[str, Any]) -> str:
    """Sensitivity-n in words, by the mean over n."""
    mean, chance = float(found["sensitivity"].mean()), float(found["sensitivity_chance"].mean())
    how = "tells" if mean >= chance + SOME else "does not tell"
    return f"Added up over scattered squares, the map {how} what they count for the score (correlation {mean:.2f}, chance {chance:.2f})."


def erased(found: Mapping[str, Any]) -> str:
    """Infidelity in words."""
    share, chance = 1 - float(found["unexplained"]), 1 - float(found["unexplained_chance"])
    how = "better than" if share >= chance + SOME else "worse than" if share <= chance - SOME else "no better than"
    return f"It explains {share:.0%} of what covering one square does, {how} the shifted map ({chance:.0%})."


def randomized(name: str, found: Mapping[str, Any]) -> str:
    """The cascading randomization in words, by the median over its stages: a single draw can leave a dead network with an empty map."""
    middle, last, chance = (
        float(value) for value in (found["cascade_rank"].quantile(0.5), found["cascade_rank"][-1], found["rank_chance"])
    )
    told = f"(median rank correlation {middle:.2f}, with all layers shuffled {last:.2f}, chance {chance:.2f})"
    if middle < max(chance, 0) + UNLIKE:  # a shifted map can be anything but alike, which is no floor to stand on
        return f"The map of {name} is lost when the network is randomized {told}: it comes from what was learned."
    if middle >= LIKE:
        return f"The map of {name} barely changes when the network is randomized {told}: do not read it as evidence about the class."
    return (
        f"The map of {name} keeps part of its pattern when the network is randomized {told}: that part does not come from what was learned."
    )


def repeated(found: Mapping[str, Any]) -> str:
    """Stability in words."""
    rank = float(found["stability_rank"])
    of = "another seed" if found["stability_of"] == "seed" else "a trace of noise on the image"
    return f"With {of} the map stays {'the same' if rank >= STABLE else 'partly the same' if rank >= LIKE else 'hardly the same'} (rank correlation {rank:.2f})."


def short(name: str, found: Mapping[str, Any]) -> str:
    """The verdict in a sentence or two, by the curves, the cascade and the repetition."""
    if found["map"].min() == found["map"].max():
        return f"The map of {name} is the same everywhere: there is nothing in it to test."
    gain = found["deletion_auc_chance"] - found["deletion_auc"], found["insertion_auc"] - found["insertion_auc_chance"]
    better, worse = sum(float(one) > MARGIN for one in gain), sum(float(one) < -MARGIN for one in gain)
    middle, chance = float(found["cascade_rank"].quantile(0.5)), max(float(found["rank_chance"]), 0)
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
    lost, kept = middle < chance + UNLIKE, middle >= LIKE
    then = (
        "is lost when the network is randomized, as it should be"
        if lost
        else "barely changes when the network is randomized: do not read it as evidence about the class"
        if kept
        else "keeps part of its pattern when the network is randomized, which does not come from what was learned"
    )
    rank, of = float(found["stability_rank"]), "another seed" if found["stability_of"] == "seed" else "a trace of noise"
    shaky = "" if rank >= LIKE else f" It hardly survives {of}."
    return f"The map of {name} {how}, {'and' if points == lost else 'but'} {then}.{shaky}"


def captions(name: str, label: str, found: Mapping[str, Any], layers: Sequence[str]) -> dict[str, str]:
    """The captions of both panels, with the sentences of the first image."""
    sentences, empty = found["verdict"], int(found["empty"])
    blank = f"; {empty} of these {len(layers)} {'is' if empty == 1 else 'are'} empty" if empty else ""
    curves = (
        f"The map of {name} for {label}. Left and middle: probability of the class when pixels are removed, or made sharp, in the order of the map "
        f"(chance: the same map, shifted at random). Right: rank correlation with the maps of randomized networks. {' '.join(sentences[:4])}"
    )
    maps = (
        f"Image, the map, and the map of the network after its layers' weights are shuffled from the answer down, one more each time: {', '.join(layers)}. "
        f"Each on its own scale up to its 99th percentile{blank}. {' '.join(sentences[4:])}".rstrip()
    )
    return {"curves": curves, "maps": maps}
