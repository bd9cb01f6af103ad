"""Steps of several runs are counted as one."""

import pytest
import torch

from sightline.registry.progress import MultiRunCallback, Step


def make_step(index: int, total: int) -> Step:
    return Step(index, total, torch.tensor([0.5]), torch.zeros(1, 3, 4, 5))


def test_steps_of_all_runs_are_counted_together() -> None:
    steps: list[Step] = []
    for run_index in range(3):
        callback = MultiRunCallback(steps.append, run_index, run_count=3)
        for index in range(1, 5):
            assert callback(make_step(index, 4)) is False
        assert not callback.stopped
    assert [(step.index, step.total) for step in steps] == [(i, 12) for i in range(1, 13)]


def test_scores_and_image_are_handed_on() -> None:
    steps: list[Step] = []
    step = make_step(2, 4)
    MultiRunCallback(steps.append, 1, 2)(step)
    assert steps[0].scores is step.scores
    assert steps[0].image is step.image


@pytest.mark.parametrize("answer", [True, 1, "stop"])
def test_a_stop_is_reported(answer: object) -> None:
    callback = MultiRunCallback(lambda step: answer, 0, 2)  # type: ignore[arg-type, return-value]
    assert callback(make_step(1, 4)) is True
    assert callback.stopped


def test_without_a_callback_nothing_stops() -> None:
    callback = MultiRunCallback(None, 0, 2)
    assert callback(make_step(1, 4)) is False
    assert not callback.stopped
