"""What a training tells while it runs: losses as lines of JSON and as TensorBoard events, curves and samples as pictures."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sightline.images.files import replace_atomically
from sightline.images.io import write
from sightline.images.plotting.maps import rasterize_figure

PLOTTED_LOSSES = ("loss", "content", "style")


class TrainingLog:
    """The records in a folder: losses.jsonl, losses.png, samples/STEP.png, events of TensorBoard."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "losses.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        self.pending_rows: list[tuple[int, Mapping[str, float]]] = []
        self.tensorboard_writer: Any = None

    def record_losses(self, step: int, losses: Mapping[str, float]) -> None:
        """Remembers the losses of a step; they are written with the next checkpoint, so that no step is written twice."""
        self.pending_rows.append((step, losses))

    def read_rows(self) -> list[dict[str, float]]:
        """All steps that were written."""
        return (
            [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
            if self.path.is_file()
            else []
        )

    def drop_rows_after(self, step: int) -> None:
        """Drops what was written after `step`: the run goes on from there."""
        self.rewrite_rows([row for row in self.read_rows() if row["step"] <= step])

    def rewrite_rows(self, rows: list[dict[str, float]]) -> None:
        with replace_atomically(self.path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def write_progress(self, step: int, sample_sheet: Tensor) -> None:
        """Writes the remembered losses, the curves so far and a sheet of samples."""
        fresh = [{"step": number, **losses} for number, losses in self.pending_rows]
        self.pending_rows = []
        known = [row for row in self.read_rows() if not fresh or row["step"] < fresh[0]["step"]]
        self.rewrite_rows([*known, *fresh])
        write(sample_sheet, self.folder / "samples" / f"{step:06}.png")
        write(plot_loss_curves([*known, *fresh]), self.folder / "losses.png")
        if self.tensorboard_writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self.tensorboard_writer = SummaryWriter(str(self.folder), purge_step=step)
        for row in fresh:
            for name in PLOTTED_LOSSES:
                self.tensorboard_writer.add_scalar(name, row[name], int(row["step"]))
        self.tensorboard_writer.add_image("samples", sample_sheet[0], step)
        self.tensorboard_writer.flush()


def plot_loss_curves(rows: list[dict[str, float]], window: int = 25) -> Tensor:
    """Losses over steps on a logarithmic axis, each the mean of `window` steps: 1×3×H×W."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), dpi=100, layout="constrained")
    axis = figure.subplots()
    for name in PLOTTED_LOSSES if rows else ():
        values = torch.tensor([row[name] for row in rows])
        smooth = values.unfold(0, window, 1).mean(1) if len(values) > window else values
        axis.semilogy(
            [int(row["step"]) for row in rows][len(values) - len(smooth) :],
            smooth.tolist(),
            label=name,
        )
    axis.set(xlabel="step", ylabel=f"loss, mean of {window} steps")
    axis.legend(frameon=False)
    return rasterize_figure(figure)
