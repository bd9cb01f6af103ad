"""The plane of decision regions: its axes, and that every cell is the network's prediction."""

import pytest
import torch
from torch import Tensor

import sightline as sl
from sightline.methods.adversarial.boundary import span_plane


def test_every_cell_is_the_prediction_at_its_point(tiny: sl.Model, photo: Tensor) -> None:
    image = photo[:, :, :26]
    values = sl.boundary(tiny, image, cells=7, steps=40, span=3).values
    direction, random = values["direction"], values["random"]
    assert float(direction.norm()) == pytest.approx(1, abs=1e-5)
    assert float(random.norm()) == pytest.approx(1, abs=1e-5)
    assert float((direction * random).sum()) == pytest.approx(0, abs=1e-5)
    for row, up in enumerate(values["up"]):
        for column, across in enumerate(values["across"]):
            point = (image + across * direction + up * random).clamp(0, 1)
            assert int(tiny.logits(point).argmax()) == int(values["answers"][row, column])

    clean_class = int(tiny.logits(image).argmax())
    assert int(values["answers"][3, 3]) == clean_class, "the middle is the image"
    assert len(values["answers"].unique()) > 1
    assert int(tiny.logits(values["image"]).argmax()) != clean_class
    assert float((values["image"] - image).norm()) == pytest.approx(values["length"], rel=1e-4)
    assert float(values["across"][-1]) == pytest.approx(3 * values["length"], rel=1e-5)


def test_a_target_sets_the_direction(tiny: sl.Model, photo: Tensor) -> None:
    image = photo[:, :, :26]
    target = int(tiny.logits(image)[0].argsort(descending=True)[2])
    nearest = sl.boundary(tiny, image, cells=3, steps=40).values
    assert int(tiny.logits(nearest["image"]).argmax()) != target
    values = sl.boundary(tiny, image, cells=3, steps=40, target=target).values
    assert int(tiny.logits(values["image"]).argmax()) == target
    assert values["length"] > nearest["length"]


def test_without_a_change_both_directions_are_random() -> None:
    change = torch.zeros(1, 3, 5, 8)
    across, up = span_plane(change, seed=1)
    for direction in (across, up):
        assert float(direction.norm()) == pytest.approx(1, abs=1e-5)
    assert float((across * up).sum()) == pytest.approx(0, abs=1e-5)
    assert not torch.equal(across, span_plane(change, seed=2)[0])
    change[0, 1, 2, 3] = 0.2
    across, _ = span_plane(change, seed=1)
    torch.testing.assert_close(across, change / 0.2)


@pytest.mark.parametrize("stop_step", [2, 6])
def test_a_stopped_run_keeps_the_rows_about_the_middle(
    stop_step: int, tiny: sl.Model, photo: Tensor
) -> None:
    """Five steps of the attack, then batches of 64 of the 361 points."""
    whole = sl.boundary(tiny, photo, cells=19, steps=5)
    indices: list[int] = []

    def stop(step: sl.Step) -> bool:
        indices.append(step.index)
        assert step.total == 5 + 6
        return step.index == stop_step

    stopped = sl.boundary(tiny, photo, cells=19, steps=5, callback=stop)
    assert indices == list(range(1, stop_step + 1))
    classes = stopped.values["answers"]
    known_rows = (classes >= 0).all(1).nonzero().flatten()
    assert known_rows.tolist() == [8, 9, 10], "64 points are three rows of 19 and a part"
    assert int((classes >= 0).sum()) == 64
    assert "Stopped: of the plane only 18%" in stopped.captions["boundary"]
    if stop_step == 6:
        whole_classes = whole.values["answers"]
        assert torch.equal(classes[known_rows], whole_classes[known_rows])
    panel = stopped.panels["boundary"]
    assert panel.shape == whole.panels["boundary"].shape
    assert float((panel == 1).float().mean()) > float(
        (whole.panels["boundary"] == 1).float().mean()
    )
