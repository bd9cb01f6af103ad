"""The log of a training: each step once, whatever was dropped, killed or run again."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import smooth

import sightline as sl
from sightline.generators.training.log import TrainingLog, plot_loss_curves

SHEET = smooth(side=48)[..., :40, :]


def make_losses(step: int) -> dict[str, float]:
    return {"loss": 1 / step, "content": 0.5 / step, "style": 0.1 / step, "tv": 0.01}


def record_steps(log: TrainingLog, *steps: int) -> None:
    for step in steps:
        log.record_losses(step, make_losses(step))


def read_steps(folder: Path) -> list[float]:
    lines = (folder / "losses.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def read_events(folder: Path) -> dict[str, Any]:
    """The steps of all scalars in the TensorBoard events, without those that were purged."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    scalars = {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }
    return {"scalars": scalars, "images": events.Tags()["images"]}


def test_progress_is_written_to_all_its_files(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path / "run")
    record_steps(log, 1, 2, 3)
    assert not log.path.exists(), "pending until the next checkpoint"
    log.write_progress(3, SHEET)
    rows = [json.loads(line) for line in log.path.read_text(encoding="utf-8").splitlines()]
    assert rows == log.rows == [{"step": step, **make_losses(step)} for step in (1, 2, 3)]
    torch.testing.assert_close(
        sl.read(log.folder / "samples" / "000003.png"), SHEET, rtol=0, atol=0.003
    )
    assert sl.read(log.folder / "losses.png").shape == (1, 3, 400, 640)
    events = read_events(log.folder)
    assert set(events["scalars"]) == {"loss", "content", "style"}
    assert events["scalars"]["style"] == [(step, pytest.approx(0.1 / step)) for step in (1, 2, 3)]
    assert events["images"] == ["samples"]


def test_a_log_goes_on_from_the_rows_of_a_checkpoint(tmp_path: Path) -> None:
    """A run that was killed between the log and the checkpoint runs steps 3 and 4 again."""
    first = TrainingLog(tmp_path)
    record_steps(first, 1, 2)
    first.write_progress(2, SHEET)
    rows = list(first.rows)
    record_steps(first, 3, 4)
    first.write_progress(4, SHEET)

    second = TrainingLog(tmp_path)
    second.restore_rows(rows)
    assert read_steps(tmp_path) == [1, 2]
    record_steps(second, 3, 4, 5)
    second.write_progress(5, SHEET)
    assert read_steps(tmp_path) == [1, 2, 3, 4, 5]
    events = read_events(tmp_path)["scalars"]["loss"]
    assert [step for step, _ in events] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "content", [None, b"", b'{"step": 1, "lo', b"\xff\0", b"[]\n", b'{"step": 9}\n' * 3]
)
def test_whatever_became_of_the_file_the_rows_are_the_checkpoints(
    content: bytes | None, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "losses.jsonl").write_bytes(content)
    log = TrainingLog(tmp_path)
    log.restore_rows([{"step": step, **make_losses(step)} for step in (1, 2)])
    assert read_steps(tmp_path) == [1, 2]
    log.restore_rows([])
    assert read_steps(tmp_path) == []


def test_rows_after_a_rollback_are_dropped(tmp_path: Path) -> None:
    """After a rollback from step 4 to step 2."""
    log = TrainingLog(tmp_path)
    record_steps(log, 1, 2)
    log.write_progress(2, SHEET)
    record_steps(log, 3, 4)
    log.drop_rows_after(2)
    record_steps(log, 3)
    log.write_progress(3, SHEET)
    assert read_steps(tmp_path) == [1, 2, 3]


def test_rows_up_to_the_step_remain(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path)
    record_steps(log, 1, 2, 3)
    log.drop_rows_after(2)
    log.write_progress(2, SHEET)
    assert read_steps(tmp_path) == [1, 2]


def test_curves_are_means_over_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    curves: dict[str, tuple[list[int], list[float]]] = {}
    plot = Axes.semilogy

    def record_curve(self: Axes, x: list[int], y: list[float], *, label: str) -> Any:
        curves[label] = (x, y)
        return plot(self, x, y, label=label)

    monkeypatch.setattr(Axes, "semilogy", record_curve)
    rows = [{"step": step, **make_losses(step)} for step in range(1, 8)]
    plot_loss_curves(rows, window=3)
    steps, values = curves["content"]
    assert steps == [3, 4, 5, 6, 7]
    expected = [sum(0.5 / k for k in (step - 2, step - 1, step)) / 3 for step in steps]
    assert values == pytest.approx(expected)
    plot_loss_curves(rows, window=7)
    assert curves["content"][0] == [1, 2, 3, 4, 5, 6, 7]
