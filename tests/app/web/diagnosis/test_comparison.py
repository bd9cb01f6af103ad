"""What the page of a comparison says is what the comparison found."""

import sightline as sl
from sightline.app.web.diagnosis.comparison import (
    build_comparison_data,
    compose_lead,
    list_layer_pairs,
)
from sightline.methods.diagnosis.compare import Comparison, compare


def test_the_data_is_that_of_the_comparison(
    comparison: Comparison, two_scans: tuple[sl.Scan, sl.Scan]
) -> None:
    data = build_comparison_data(comparison, *two_scans, lambda key, _: key)
    assert data["names"] == comparison.names
    assert len(data["flips"]) == len(comparison.flips) > 0
    for shown, group in zip(data["flips"], comparison.flips, strict=True):
        assert shown["count"] == len(group.members)
        first = int(comparison.ids[group.members[0]])
        assert shown["tiles"][0].source == f"thumbnail {first}"
        assert "→" in shown["tiles"][0].caption
    assert sum(row["count"] for row in data["fates"]) >= 28
    assert data["heatmap"]["rows"] == ("conv2", "conv3")
    assert data["performances"][0]["accuracy"].endswith("%")
    assert sum(row["came"] for row in data["class_flips"]) == round(comparison.flip_share * 60)


def test_pairs_of_layers_are_the_most_similar(comparison: Comparison) -> None:
    pairs = {row["new"]: row["old"] for row in list_layer_pairs(comparison)}
    assert pairs == {"conv2": "conv2", "conv3": "conv3"}


def test_the_lead_says_what_differs(
    comparison: Comparison, two_scans: tuple[sl.Scan, sl.Scan]
) -> None:
    lead = compose_lead(comparison)
    assert f"{comparison.flip_share:.1%} of their answers" in lead
    assert "28 of 28 units" in lead
    same = compare(two_scans[0], two_scans[0])
    assert "are the same in all that was compared" in compose_lead(same)
