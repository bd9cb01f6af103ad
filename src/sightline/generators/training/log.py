"""The log of a training: losses as JSON lines, TensorBoard events and curves; samples as images."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sightline.generators.training.resume import LogRow
from sightline.images.files import replace_atomically
from sightline.images.io.pictures import write
from sightline.images.plotting.charts import rasterize_figure

PLOTTED_LOSSES = ("loss", "content", "style")


class TrainingLog:
    """Writes losses.jsonl, losses.png, samples/STEP.png and TensorBoard events into a folder.

    `rows` has each step of the run once. They are kept in the checkpoint, and losses.jsonl is
    written from them. Lightning Fabric's CSV logger would not do: it deletes the rows of an earlier
    run when it opens the folder, and can't drop the rows after a checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "losses.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        self.rows: list[LogRow] = []
        self.last_event_step = 0  # up to there TensorBoard has the losses
        self.tensorboard_writer: Any = None

    def record_losses(self, step: int, losses: Mapping[str, float]) -> None:
        """Keeps the losses of a step; `write_progress` writes them."""
        self.rows.append({"step": step, **losses})

    def restore_rows(self, rows: Sequence[LogRow]) -> None:
        """Takes over the rows of a checkpoint. Whatever losses.jsonl holds is replaced by them."""
        self.rows = list(rows)
        self.last_event_step = len(rows)
        if rows or self.path.exists():
            self.write_rows()

    def drop_rows_after(self, step: int) -> None:
        """Drops rows later than `step`, the last one written: the run goes on from there."""
        self.rows = [row for row in self.rows if row["step"] <= step]

    def write_rows(self) -> None:
        """Writes losses.jsonl, whole or not at all."""
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        with replace_atomically(self.path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def write_progress(self, step: int, sample_sheet: Tensor) -> None:
        """Writes the losses, their curves, and the samples 1×3×H×W made at `step`."""
        self.write_rows()
        write(sample_sheet, self.folder / "samples" / f"{step:06}.png")
        write(plot_loss_curves(self.rows), self.folder / "losses.png")
        new_rows = [row for row in self.rows if row["step"] > self.last_event_step]
        self.write_tensorboard_events(step, new_rows, sample_sheet)
        self.last_event_step = step

    def write_tensorboard_events(
        self, step: int, rows: Sequence[LogRow], sample_sheet: Tensor
    ) -> None:
        if self.tensorboard_writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # Events that a killed run wrote after its last checkpoint are hidden.
            first_step = int(rows[0]["step"]) if rows else step
            self.tensorboard_writer = SummaryWriter(str(self.folder), purge_step=first_step)
        writer = self.tensorboard_writer
        for row in rows:
            for name in PLOTTED_LOSSES:
                writer.add_scalar(name, row[name], int(row["step"]))
        writer.add_image("samples", sample_sheet[0], step)
        writer.flush()


def plot_loss_curves(rows: Sequence[LogRow], window: int = 25) -> Tensor:
    """Plots losses over steps, each a mean over `window` steps: 1×3×H×W in [0, 1]."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), dpi=100, layout="constrained")
    axis = figure.subplots()
    if rows:
        steps = [int(row["step"]) for row in rows]
        for name in PLOTTED_LOSSES:
            losses = torch.tensor([row[name] for row in rows])
            if len(losses) > window:
                losses = losses.unfold(0, window, 1).mean(1)
            axis.semilogy(steps[-len(losses) :], losses.tolist(), label=name)
    axis.set(xlabel="step", ylabel=f"loss, mean of {window} steps")
    axis.legend(frameon=False)
    return rasterize_figure(figure)
