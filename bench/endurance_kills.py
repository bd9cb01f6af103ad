"""The kills of `endurance.py`: scans and trainings that end at any moment, and are run again."""

import os
import random
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from endurance_cases import (
    Outcome,
    count_changed_bytes,
    make_image,
    make_model,
    make_photos,
    read_answers,
)
from lightning_fabric import Fabric

import sightline as sl
from sightline.data.scan import run as scan_run
from sightline.data.store.maintenance import verify_store
from sightline.generators.training import log
from sightline.generators.training.dataset import PhotoDataset
from sightline.generators.training.fixed_styles import TrainingPlan
from sightline.generators.training.train import train_stylizer

Work = Callable[[], object]


def start_child(work: Work, prepare: Work) -> int:
    """Runs both in a forked process; returns its id once it is prepared.

    Lance can't be used after a fork, so each child imports it for itself.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        with os.fdopen(reader, "rb") as prepared:
            prepared.read(1)
        return child
    status = 1
    try:
        os.close(reader)
        prepare()
        os.write(writer, b"1")
        work()
        status = 0
    except BaseException:  # noqa: BLE001 - a child of a fork must end here, whatever happens
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def run_child(work: Work, prepare: Work) -> float:
    """Runs both in a forked process. Returns the seconds of the work; RuntimeError if it fails."""
    child = start_child(work, prepare)
    started = time.monotonic()
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError(f"a child ended with {status}; its traceback is in the log")
    return time.monotonic() - started


def kill_child(work: Work, prepare: Work, seconds: float) -> bool:
    """Runs both in a forked process and kills it after so long. Whether it was still running."""
    child = start_child(work, prepare)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def count_abandoned_bytes(folder: Path) -> int:
    """Bytes of half-written files that are still there."""
    return sum(path.stat().st_size for path in folder.rglob(".*") if path.is_file())


def import_lance() -> None:
    import_module("lancedb")


# ── scans ──


class ScanKills:
    """Scans that are killed at a random moment and resumed, against one that was not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = make_model()
        self.photos = make_photos(folder / "photos", 96)
        scan_run.MIN_COMMIT_SECONDS = 0.02  # so that there are commits to be killed in
        whole = folder / "whole.scan"
        self.seconds = run_child(lambda: self.scan_photos(whole), import_lance)

    def scan_photos(self, store: Path) -> None:
        sl.scan(self.model, self.photos, store=store, batch=8, k=5)

    def run(self, _number: int, chance: random.Random) -> Outcome:
        store = self.folder / "killed.scan"
        shutil.rmtree(store, ignore_errors=True)
        seconds = chance.random() * self.seconds
        was_running = kill_child(lambda: self.scan_photos(store), import_lance, seconds)

        def compare() -> None:
            self.scan_photos(store)
            answers = read_answers(sl.Scan.open(store))
            expected = read_answers(sl.Scan.open(self.folder / "whole.scan"))
            lost = count_changed_bytes(answers, expected)
            problems = verify_store(store)
            np.savetxt(self.folder / "lost.txt", [lost, len(problems)], "%d")

        run_child(compare, import_lance)
        lost, problem_count = np.loadtxt(self.folder / "lost.txt", dtype=int)
        detail = "killed" if was_running else "had ended"
        kind = "wrong" if lost or problem_count else "right"
        return Outcome(kind, detail, int(lost))


# ── trainings ──


class TrainingKills:
    """Trainings that are killed at a random moment and resumed, against one that was not."""

    def __init__(self, folder: Path) -> None:
        warnings.simplefilter("ignore")
        self.model = make_model()
        self.fabric: Any = Fabric(accelerator="cpu", devices=1)
        self.fabric.launch()
        pixels = torch.cat([make_image(seed, 40, 40) for seed in range(5)])
        array = pixels.mul(255).byte().permute(0, 2, 3, 1).contiguous().numpy()
        self.photos = PhotoDataset(array, "photographs")
        sl.write(make_image(9, 56, 48), folder / "wave.png")
        self.plan = TrainingPlan(
            (folder / "wave.png",),
            folder / "whole",
            norm="instance",
            width=4,
            blocks=1,
            size=32,
            style_size=48,
            batch=2,
            steps=12,
            every=2,
        )
        # Curves and events take longer than the training, and are made again from the log.
        log.plot_loss_curves = lambda rows, window=25: torch.zeros(1, 3, 8, 8)
        log.TrainingLog.write_tensorboard_events = lambda *_: None  # type: ignore[method-assign]
        self.seconds = run_child(lambda: self.train(self.plan), lambda: None)

    def train(self, plan: TrainingPlan) -> None:
        train_stylizer(plan, self.photos, self.model, self.fabric)

    def run(self, _number: int, chance: random.Random) -> Outcome:
        plan = replace(self.plan, out=self.plan.out.with_name("killed"))
        shutil.rmtree(plan.out, ignore_errors=True)
        seconds = chance.random() * self.seconds
        was_running = kill_child(lambda: self.train(plan), lambda: None, seconds)
        run_child(lambda: self.train(plan), lambda: None)
        lost = count_abandoned_bytes(plan.out)
        for name in ("stylizer.safetensors", "losses.jsonl"):
            content = (plan.out / name).read_bytes()
            expected = (self.plan.out / name).read_bytes()
            lost += sum(left != right for left, right in zip(content, expected, strict=False))
            lost += abs(len(content) - len(expected))
        detail = "killed" if was_running else "had ended"
        return Outcome("wrong" if lost else "right", detail, lost)
