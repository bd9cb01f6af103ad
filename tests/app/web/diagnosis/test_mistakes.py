"""What the page of mistakes says is what was found."""

import numpy as np

import sightline as sl
from sightline.app.web.diagnosis.mistakes import build_effects_data, build_mistakes_data
from sightline.methods.diagnosis.ablation_effects import AblationEffects
from sightline.methods.diagnosis.causal_tests import CausalTest, ClassShare
from sightline.methods.diagnosis.enriched_units import EnrichedUnit
from sightline.methods.diagnosis.error_groups import ErrorGroup
from sightline.methods.diagnosis.mistakes import MistakeGroup, Mistakes

MEMBERS = np.array([4, 9, 2, 30, 31])


def make_result() -> Mistakes:
    group = ErrorGroup(1, MEMBERS, np.arange(40), 50, 0.6, 0.2, 4.0, 0.004)
    explained = MistakeGroup(
        group=group,
        ids=MEMBERS,
        class_name="bee",
        truth=("dog", "cat", "dog", "cat", "dog"),
        true_classes=(("dog", 3), ("cat", 2)),
        units=(EnrichedUnit("conv2", 7, 0.9, 5.0), EnrichedUnit("conv3", 1, 0.8, 3.0)),
        cause=(("conv3", 1),),
        tests=(
            CausalTest("units off", 5, 4, 3, 0.5, 0.2, 0.05),
            CausalTest("patch pasted", 5, 1, 0, 0.7, 0.0, 0.4),
        ),
        share=ClassShare(0.8, 0.1, 12, 2, 20, 2),
        to_label=(50, 51),
        sentence="A sentence.",
    )
    return Mistakes(
        "net",
        55,
        5,
        11,
        (explained,),
        "the dataset's classes",
        ("a note",),
        {("conv3", 1): "bee"},
    )


def test_the_data_is_that_of_the_result(two_scans: tuple[sl.Scan, sl.Scan]) -> None:
    data = build_mistakes_data(make_result(), two_scans[0], lambda key, _: key)
    assert data["accuracy"] == "80.0%"
    assert data["with_cause"] == 1
    (group,) = data["groups"]
    assert group["title"] == "5 images wrongly taken for bee"
    assert [tile.source for tile in group["tiles"]] == [f"thumbnail {id}" for id in MEMBERS]
    assert [tile.caption.split(",")[0] for tile in group["tiles"]] == list(
        make_result().groups[0].truth
    )
    assert [unit["name"] for unit in group["units"]] == ["conv3 · 1 «bee»", "conv2 · 7"]
    assert [unit["is_cause"] for unit in group["units"]] == [True, False]
    assert group["tests"][0]["changed"] == "4 of 5"
    assert group["tests"][0]["is_passed"]
    assert group["tests"][1]["becomes"] == "become bee"
    assert group["broken"] == "2 of 12"
    assert [tile.source for tile in group["to_label"]] == ["thumbnail 50", "thumbnail 51"]


def test_effects_are_listed_by_their_size(two_scans: tuple[sl.Scan, sl.Scan]) -> None:
    effects = AblationEffects(
        layer="conv2",
        units=np.array([3, 5, 8]),
        fill="zero",
        images=np.arange(20),
        class_names=("bee", "dog"),
        class_numbers=np.array([1, 3]),
        class_counts=np.array([10, 10]),
        reference="the true classes",
        accuracy=0.8,
        class_accuracy=np.array([0.9, 0.7]),
        unit_accuracy=np.array([0.75, 0.8, 0.5]),
        unit_class_accuracy=np.array([[0.9, 0.6], [0.9, 0.7], [0.4, 0.6]]),
        flips=np.array([0.1, 0.0, 0.4]),
        probability_change=np.zeros((3, 2)),
    )
    data = build_effects_data(effects, two_scans[0], lambda key, _: key)
    assert [row["unit"] for row in data["rows"]] == [8, 3, 5]
    assert data["rows"][0]["classes"] == "bee −50%, dog −10%"
    assert data["rows"][0]["drop"] == "+30.0%"
    assert data["idle"] == 1
