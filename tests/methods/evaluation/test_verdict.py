"""Each sentence changes at its limit."""

from dataclasses import replace

import pytest

from sightline.methods.evaluation.verdict import (
    TrustScores,
    rate_trust,
    write_short_verdict,
    write_trust_captions,
    write_verdicts,
)

SCORES = TrustScores(
    is_constant=False,
    deletion_auc=0.3,
    deletion_auc_chance=0.5,
    insertion_auc=0.6,
    insertion_auc_chance=0.5,
    randomized_rank=0.0,
    rank_chance=0.0,
    stability_rank=0.9,
    stability_of="seed",
    sensitivity=0.5,
    sensitivity_chance=0.0,
    unexplained=0.5,
    unexplained_chance=0.98,
    fully_randomized_rank=0.1,
)

DELETION, INSERTION, SENSITIVITY, INFIDELITY, RANDOMIZATION, STABILITY = range(6)


@pytest.mark.parametrize(
    ("test", "changes", "expected"),
    [
        (DELETION, {"deletion_auc": 0.47}, "lowers the probability faster than"),
        (DELETION, {"deletion_auc": 0.49}, "lowers the probability no faster than"),
        (DELETION, {"deletion_auc": 0.53}, "lowers the probability more slowly than"),
        (INSERTION, {"insertion_auc": 0.53}, "raises it faster than"),
        (INSERTION, {"insertion_auc": 0.51}, "raises it no faster than"),
        (INSERTION, {"insertion_auc": 0.47}, "raises it more slowly than"),
        (SENSITIVITY, {"sensitivity": 0.1}, "attribution predicts how far"),
        (SENSITIVITY, {"sensitivity": 0.09}, "attribution does not predict how far"),
        (
            INFIDELITY,
            {"unexplained": 0.86},
            "explains 14% of what covering one square does, better",
        ),
        (
            INFIDELITY,
            {"unexplained": 0.97},
            "explains 3% of what covering one square does, no better",
        ),
        (INFIDELITY, {"unexplained": 1.1, "unexplained_chance": 0.9}, "does, worse than"),
        (RANDOMIZATION, {"randomized_rank": 0.19}, "is lost when"),
        (RANDOMIZATION, {"randomized_rank": 0.2}, "keeps part of its pattern when"),
        (RANDOMIZATION, {"randomized_rank": 0.49}, "keeps part of its pattern when"),
        (RANDOMIZATION, {"randomized_rank": 0.5}, "barely changes when"),
        (RANDOMIZATION, {"randomized_rank": 0.29, "rank_chance": 0.1}, "is lost when"),
        (RANDOMIZATION, {"randomized_rank": 0.0, "rank_chance": -0.4}, "is lost when"),
        (RANDOMIZATION, {}, "median rank correlation 0.00, with all layers shuffled 0.10"),
        (STABILITY, {"stability_rank": 0.8}, "With another seed the attribution stays the same"),
        (STABILITY, {"stability_rank": 0.79}, "stays partly the same"),
        (STABILITY, {"stability_rank": 0.5}, "stays partly the same"),
        (STABILITY, {"stability_rank": 0.49}, "becomes another one"),
        (STABILITY, {"stability_of": "noise"}, "With a little noise on the image"),
    ],
)
def test_verdicts_go_by_their_limits(
    test: int, changes: dict[str, float | str], expected: str
) -> None:
    assert expected in write_verdicts("it", replace(SCORES, **changes))[test]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "finds what the score depends on better than chance, and is lost"),
        ({"insertion_auc": 0.51}, "finds what the score depends on better than chance, and is"),
        ({"deletion_auc": 0.5}, "finds what the score depends on better than chance, and is"),
        (
            {"deletion_auc": 0.6, "insertion_auc": 0.4},
            "points away from what the score depends on, but",
        ),
        ({"insertion_auc": 0.4}, "disagrees with itself on what the score depends on, but"),
        ({"deletion_auc": 0.6}, "disagrees with itself on what the score depends on, but"),
        ({"deletion_auc": 0.5, "insertion_auc": 0.5}, "no better than chance, but is lost"),
        ({"deletion_auc": 0.5, "insertion_auc": 0.4}, "no better than chance, but is lost"),
        ({"randomized_rank": 0.3}, "better than chance, but keeps part of its pattern"),
        (
            {"randomized_rank": 0.5},
            "but barely changes when the network is randomized: do not read",
        ),
        (
            {"deletion_auc": 0.5, "insertion_auc": 0.5, "randomized_rank": 0.5},
            "no better than chance, and barely changes",
        ),
    ],
)
def test_the_short_verdict_goes_by_the_same_limits(
    changes: dict[str, float], expected: str
) -> None:
    sentence = write_short_verdict("it", replace(SCORES, **changes))
    assert sentence.startswith("The attribution of it ")
    assert expected in sentence
    assert "hardly survives" not in sentence


def test_the_short_verdict_names_what_the_attribution_hardly_survives() -> None:
    for variation, name in (("seed", "another seed"), ("noise", "a little noise")):
        shaky = replace(SCORES, stability_rank=0.49, stability_of=variation)
        assert write_short_verdict("it", shaky).endswith(f" It hardly survives {name}.")
    assert "survives" not in write_short_verdict("it", replace(SCORES, stability_rank=0.5))


def test_a_constant_attribution_has_nothing_to_test() -> None:
    constant = replace(SCORES, is_constant=True)
    sentence = "The attribution of it is the same everywhere: there is nothing in it to test."
    assert write_verdicts("it", constant) == [sentence]
    assert write_short_verdict("it", constant) == sentence


@pytest.mark.parametrize(
    ("empty_count", "note"),
    [(0, ""), (1, "; 1 of these 3 is empty"), (2, "; 2 of these 3 are empty")],
)
def test_captions_hold_the_sentences_in_order(empty_count: int, note: str) -> None:
    sentences = ["One.", "Two.", "Three.", "Four.", "Five.", "Six."]
    stages = ["fc", "conv2", "conv1"]
    captions = write_trust_captions("it", "cat", sentences, empty_count, stages)
    assert captions["curves"].endswith(" One. Two. Three. Four.")
    assert "The attribution of it for cat." in captions["curves"]
    assert captions["maps"].endswith(f"99th percentile{note}. Five. Six.")
    assert "fc, conv2, conv1" in captions["maps"]


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({}, "strong"),
        ({"stability_rank": 0.49}, "weak"),
        ({"randomized_rank": 0.3}, "weak"),
        ({"deletion_auc": 0.5, "insertion_auc": 0.5}, "weak"),
        ({"deletion_auc": 0.5, "insertion_auc": 0.5, "randomized_rank": 0.6}, "failed"),
        ({"is_constant": True}, "empty"),
    ],
)
def test_a_verdict_in_one_word(changes: dict[str, float], level: str) -> None:
    assert rate_trust(replace(SCORES, **changes)) == level


def test_no_number_is_minus_zero() -> None:
    small = replace(SCORES, rank_chance=-0.001, sensitivity_chance=-0.004, unexplained_chance=1.001)
    text = " ".join(write_verdicts("gradcam", small))
    assert "-0.00" not in text
    assert "-0%" not in text
    assert "chance 0.00" in text
