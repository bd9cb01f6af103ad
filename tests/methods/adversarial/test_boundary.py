"""A plane through the answers: its axes, and that every cell is the network's answer there."""

import pytest
from torch import Tensor

import sightline as sl


def test_every_cell_is_the_answer_there(tiny: sl.Model, photo: Tensor) -> None:
    values = sl.boundary(tiny, photo, cells=7, steps=40, span=3).values
    one, two = values["direction"], values["random"]
    assert float(one.norm()) == pytest.approx(1, abs=1e-5)
    assert float(two.norm()) == pytest.approx(1, abs=1e-5)
    assert float((one * two).sum()) == pytest.approx(0, abs=1e-5)
    for row, up in enumerate(values["up"]):
        for column, across in enumerate(values["across"]):
            point = (photo + across * one + up * two).clamp(0, 1)
            assert int(tiny.logits(point).argmax()) == int(values["answers"][row, column])
    assert int(values["answers"][3, 3]) == int(tiny.logits(photo).argmax()), (
        "the middle is the image"
    )
    assert int(tiny.logits(values["image"]).argmax()) != int(tiny.logits(photo).argmax())
    assert float((values["image"] - photo).norm()) == pytest.approx(values["length"], rel=1e-4)
    assert float(values["across"][-1]) == pytest.approx(3 * values["length"], rel=1e-5)
