"""The short form of the trust test has the numbers of the long one with its settings."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import sightline as sl
from sightline.images.transforms import blur_image
from sightline.methods.evaluation.summary import (
    find_run_attribution_method,
    read_trust_summary,
    summarize_trust,
)


def test_the_short_form_has_the_numbers_of_the_long_one(tiny: sl.Model, wide_photo: Tensor) -> None:
    index = int(tiny.logits(wide_photo).argmax())
    method = find_run_attribution_method("saliency", {"label": "cat"})
    short = summarize_trust(tiny, wide_photo, method, index)
    full = sl.trust(tiny, wide_photo, steps=8, stages=4).tensors
    for name in ("deletion_auc", "insertion_auc"):
        assert short.numbers[name] == pytest.approx(float(full[name]), abs=1e-5)
    median = float(full["cascade_rank"][0, :3].quantile(0.5))
    assert short.numbers["randomized_rank"] == pytest.approx(median, abs=1e-5)
    names = ("deletion_auc", "insertion_auc", "randomized_rank", "stability_rank")
    assert [row[2] for row in short.rows] == [short.numbers[name] for name in names]
    chance_names = ("deletion_auc_chance", "insertion_auc_chance", "rank_chance")
    assert [row[3] for row in short.rows] == [
        *(short.numbers[name] for name in chance_names),
        None,
    ]
    assert short.numbers["stability_of"] == "noise"
    assert "noise on the image" in short.rows[3][0]


def test_another_seed_is_named_where_it_counts(tiny: sl.Model, wide_photo: Tensor) -> None:
    method = find_run_attribution_method("saliency", {"kind": "smoothgrad", "samples": 4})
    short = summarize_trust(tiny, wide_photo, method, 2)
    assert short.numbers["stability_of"] == "seed"
    assert short.rows[3][0] == "With another seed: similarity of the attribution"


def test_an_attribution_that_ignores_the_network_is_found_out(
    tiny: sl.Model, wide_photo: Tensor, replace_gradcam: Callable[..., None]
) -> None:
    replace_gradcam(lambda _model, image: (image - blur_image(image, 2)).abs().sum(1))
    short = summarize_trust(tiny, wide_photo, find_run_attribution_method("gradcam", {}), 2)
    assert short.numbers["randomized_rank"] == pytest.approx(1)
    assert short.sentence.endswith(
        "barely changes when the network is randomized: do not read it as evidence about the class."
    )


def test_a_constant_attribution_has_nothing_to_test(
    tiny: sl.Model, wide_photo: Tensor, replace_gradcam: Callable[..., None]
) -> None:
    replace_gradcam(lambda _model, image: torch.ones_like(image[:, 0]))
    short = summarize_trust(tiny, wide_photo, find_run_attribution_method("gradcam", {}), 2)
    assert "there is nothing in it to test" in short.sentence


def test_a_run_keeps_the_parameters_that_change_its_attribution() -> None:
    method = find_run_attribution_method(
        "saliency", {"label": "cat", "kind": "smoothgrad", "samples": 5, "seed": 9}
    )
    assert (method.kind, dict(method.parameters)) == ("smoothgrad", {"samples": 5})
    guided = find_run_attribution_method("guided", {"k": 9, "unit": 3, "layer": "middle"})
    assert (guided.kind, dict(guided.parameters)) == ("guided", {"layer": "middle"})
    with pytest.raises(sl.SightlineError, match="no attribution method named 'predictions'"):
        find_run_attribution_method("predictions", {})


def test_the_summary_of_a_long_run_has_its_numbers(tiny: sl.Model, wide_photo: Tensor) -> None:
    values = sl.trust(tiny, wide_photo, steps=4, samples=4, stages=3).values
    summary = read_trust_summary(values, "saliency")
    assert summary.numbers["deletion_auc"] == float(values["deletion_auc"][0])
    assert summary.numbers["rank_chance"] == float(values["rank_chance"][0])
    ranks = sorted(values["cascade_rank"][0].tolist())
    assert summary.numbers["randomized_rank"] == pytest.approx(ranks[1])
    assert summary.numbers["stability_of"] == "noise"
    assert summary.sentence.startswith("The attribution of saliency ")
    assert summary.level in {"strong", "weak", "failed"}
