"""The natural images beside a synthesis: chosen by rank, and compared by the unit's response."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import smooth

import sightline as sl
from sightline.data.store.reader import TopImages
from sightline.methods.synthesis.natural_images import NaturalExemplars, select_ranked_images

TOP = TopImages(
    torch.tensor([5.0, 4.0, 3.0]), torch.tensor([8, 2, 6]), torch.tensor([[0, 1], [2, 3], [4, 5]])
)


def make_exemplars(model: sl.Model, layer: str, units: tuple[int, ...]) -> NaturalExemplars:
    scan: Any = None
    return NaturalExemplars(model, scan, layer, units, (TOP,) * len(units))


def test_images_are_chosen_by_rank() -> None:
    chosen = select_ranked_images(TOP, torch.tensor([2, 0]))
    assert chosen.values.tolist() == [3, 5]
    assert chosen.ids.tolist() == [6, 8]
    assert chosen.positions is not None
    assert chosen.positions.tolist() == [[4, 5], [0, 1]]
    without = TopImages(TOP.values, TOP.ids, None)
    assert select_ranked_images(without, torch.tensor([1])).positions is None


def test_units_and_classes_in_words(tiny: sl.Model) -> None:
    assert make_exemplars(tiny, "conv2", (3, 7)).describe_unit(1) == "unit 7 of conv2"
    assert make_exemplars(tiny, "logits", (2, 0)).describe_unit(0) == "cat"


def test_each_image_is_compared_by_its_own_unit(tiny: sl.Model) -> None:
    picture = smooth(2, side=40, seed=3)[..., :32, :]
    ratio = make_exemplars(tiny, "relu2", (4, 9)).compute_response_ratio(picture)
    maps = tiny.features(picture, "relu2")["relu2"]
    expected = torch.stack([maps[0, 4].max() / 5, maps[1, 9].max() / 5])
    torch.testing.assert_close(ratio, expected)


def test_where_no_natural_image_drives_the_unit_the_ratio_is_0(tiny: sl.Model) -> None:
    scan: Any = None
    dead = TopImages(torch.tensor([0.0]), torch.tensor([1]), None)
    exemplars = NaturalExemplars(tiny, scan, "relu2", (4,), (dead,))
    assert exemplars.compute_response_ratio(smooth(seed=3)).tolist() == [0]


def test_an_objective_about_no_unit_has_no_natural_images(tiny: sl.Model, tmp_path: Path) -> None:
    with pytest.raises(sl.SightlineError, match="is about neither; leave out store"):
        NaturalExemplars.from_store(tiny, tmp_path, sl.tv(), ("conv1", ()))
