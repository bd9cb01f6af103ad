"""Training on a tiny loss network: learning, resuming to the bit, NaN, and two processes."""

import json
import os
import signal
import warnings
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import smooth

import sightline as sl
from sightline.generators.checkpoint import read_fixed_style_network
from sightline.generators.training.dataset import PhotoDataset
from sightline.generators.training.fixed_styles import TrainingPlan
from sightline.generators.training.train import TrainingRun, TrainingStep, train_stylizer
from sightline.images.io import pictures as images

MakeFabric = Callable[..., Any]


@pytest.fixture(scope="module")
def photos() -> PhotoDataset:
    pixels = (smooth(12, 40, seed=5) * 255).round().byte().permute(0, 2, 3, 1)
    return PhotoDataset(pixels.contiguous().numpy(), "smooth")


@pytest.fixture
def plan(tmp_path: Path) -> TrainingPlan:
    for seed, name in enumerate(("wave", "night", "scream")):
        picture = smooth(side=56, seed=30 + seed)[..., :48, :]
        images.write(picture, tmp_path / f"{name}.png")
    return TrainingPlan(
        (tmp_path / "wave.png", tmp_path / "night.png"),
        tmp_path / "out",
        width=4,
        blocks=1,
        size=32,
        style_size=48,
        batch=2,
        steps=6,
        every=2,
        lr=0.01,
    )


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    return checkpoint["state"]["network"]


def read_losses(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "losses.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def assert_same_run(folder: Path, other: Path) -> None:
    """The weights to the bit, and every loss."""
    weights, other_weights = read_weights(folder), read_weights(other)
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
    assert read_losses(folder) == read_losses(other)


def test_it_learns_and_writes_while_it_runs(
    plan: TrainingPlan, photos: PhotoDataset, tiny: sl.Model, make_fabric: MakeFabric
) -> None:
    train_stylizer(replace(plan, steps=20, every=10), photos, tiny, make_fabric())
    rows = read_losses(plan.out)
    assert [row["step"] for row in rows] == list(range(1, 21))
    losses = [row["loss"] for row in rows]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    samples = sorted(path.name for path in (plan.out / "samples").iterdir())
    assert samples == ["000010.png", "000020.png"]
    sample_shape = (1, 3, 3 * 42 - 2, 3 * 42 - 2)
    assert sl.read(plan.out / "samples" / "000020.png").shape == sample_shape
    assert sl.read(plan.out / "losses.png").shape[1] == 3
    assert list(plan.out.glob("events.out.tfevents.*"))
    style_network = read_fixed_style_network(plan.out / "stylizer.safetensors")
    assert style_network.names == ("wave", "night")
    assert style_network.metadata["step"] == 20


def test_the_learning_rate_falls_to_zero_over_the_last_quarter(
    plan: TrainingPlan, photos: PhotoDataset, tiny: sl.Model, make_fabric: MakeFabric
) -> None:
    run = TrainingRun(replace(plan, steps=8, lr=0.01), photos, tiny, make_fabric())
    rates: list[float] = []
    for _ in range(8):
        run.run_step()
        rates.append(run.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.01] * 7 + [0.005])


# ── resuming ──


# Another test of the same process may have loaded Lance, which warns of every fork; the child does
# not use it.
def test_killed_and_resumed_it_ends_with_the_same_bits(
    plan: TrainingPlan, photos: PhotoDataset, tiny: sl.Model, make_fabric: MakeFabric
) -> None:
    train_stylizer(plan, photos, tiny, make_fabric())
    killed_plan = replace(plan, out=plan.out.with_name("killed"))

    def kill_at_step_5(step: TrainingStep) -> None:
        if step.index == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    child = get_context("fork").Process(
        target=lambda: train_stylizer(killed_plan, photos, tiny, make_fabric(), kill_at_step_5)
    )
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    steps = [row["step"] for row in read_losses(killed_plan.out)]
    assert steps == [1, 2, 3, 4], "up to the last checkpoint"
    train_stylizer(killed_plan, photos, tiny, make_fabric())
    assert_same_run(plan.out, killed_plan.out)
    assert not [path for path in killed_plan.out.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("checkpoint_step", [2, 4])
def test_stopped_between_log_and_checkpoint_no_step_is_lost_or_doubled(
    *,
    checkpoint_step: int,
    plan: TrainingPlan,
    photos: PhotoDataset,
    tiny: sl.Model,
    make_fabric: MakeFabric,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train_stylizer(plan, photos, tiny, make_fabric())
    stopped_plan = replace(plan, out=plan.out.with_name("stopped"))
    save = torch.save

    def save_or_stop(checkpoint: Any, path: Path) -> None:
        if checkpoint["state"]["step"] == checkpoint_step:
            raise KeyboardInterrupt
        save(checkpoint, path)

    monkeypatch.setattr(torch, "save", save_or_stop)
    with pytest.raises(KeyboardInterrupt):
        train_stylizer(stopped_plan, photos, tiny, make_fabric())
    assert len(read_losses(stopped_plan.out)) == checkpoint_step
    monkeypatch.undo()
    train_stylizer(stopped_plan, photos, tiny, make_fabric())
    assert_same_run(plan.out, stopped_plan.out)


def test_a_callback_ends_it_with_everything_written(
    plan: TrainingPlan, photos: PhotoDataset, tiny: sl.Model, make_fabric: MakeFabric
) -> None:
    train_stylizer(plan, photos, tiny, make_fabric(), lambda step: step.index == 3)
    style_network = read_fixed_style_network(plan.out / "stylizer.safetensors")
    assert style_network.metadata["step"] == 3
    assert len(read_losses(plan.out)) == 3


def test_a_checkpoint_of_another_plan_is_refused(
    plan: TrainingPlan, photos: PhotoDataset, tiny: sl.Model, make_fabric: MakeFabric
) -> None:
    short_plan = replace(plan, steps=2)
    train_stylizer(short_plan, photos, tiny, make_fabric())
    for other_plan, message in (
        (replace(short_plan, lr=0.02), "lr 0.01, not 0.02"),
        (replace(short_plan, seed=1), "seed 0, not 1"),
    ):
        with pytest.raises(sl.SightlineError, match=message):
            train_stylizer(other_plan, photos, tiny, make_fabric())
    train_stylizer(replace(short_plan, every=1), photos, tiny, make_fabric())


# ── processes ──


def test_two_processes_give_the_loss_of_one(
    plan: TrainingPlan, photos: PhotoDataset, tiny: sl.Model, make_fabric: MakeFabric
) -> None:
    plan = replace(plan, steps=3, every=3)
    train_stylizer(plan, photos, tiny, make_fabric())
    shared_plan = replace(plan, out=plan.out.with_name("two"))

    def train(fabric: Any) -> None:
        warnings.simplefilter("ignore")
        train_stylizer(shared_plan, photos, tiny, fabric)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_fabric(devices=2, strategy="ddp_fork").launch(train)
    pairs = zip(read_losses(plan.out), read_losses(shared_plan.out), strict=True)
    for losses, shared_losses in pairs:
        assert losses == pytest.approx(shared_losses, rel=1e-4)

    # Weights differ where the gradient is zero up to rounding (a shift before the next norm), which
    # Adam makes into whole steps.
    photo = smooth(side=40)[..., :32, :]
    outputs: list[torch.Tensor] = []
    for out in (plan.out, shared_plan.out):
        style_network = read_fixed_style_network(out / "stylizer.safetensors")
        with torch.no_grad():
            outputs.append(style_network.network(photo, style_network.make_mix("night")))
    torch.testing.assert_close(*outputs, rtol=0, atol=0.01)


# ── NaN ──


def test_nan_goes_back_and_halves_the_step(
    plan: TrainingPlan, photos: PhotoDataset, tiny: sl.Model, make_fabric: MakeFabric
) -> None:
    run = TrainingRun(replace(plan, steps=10), photos, tiny, make_fabric())
    for _ in range(2):
        run.run_step()
    run.write_checkpoint()
    state_before = {name: value.clone() for name, value in run.network.state_dict().items()}
    run.run_step()
    with torch.no_grad():
        run.network.last.conv.weight.fill_(torch.nan)

    message = r"loss is nan at step 4: back to step 2, step size halved to 0\.005"
    with pytest.warns(UserWarning, match=message):
        assert run.run_step() is None
    assert run.step == 2
    for name, value in run.network.state_dict().items():
        assert torch.equal(value, state_before[name])

    for _ in range(2):
        assert run.run_step()
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(0.005)
    run.write_checkpoint()
    steps = [row["step"] for row in read_losses(plan.out)]
    assert steps == [1, 2, 3, 4], "a step that was run again is logged once"


def test_nan_that_stays_ends_it(
    plan: TrainingPlan, photos: PhotoDataset, tiny: sl.Model, make_fabric: MakeFabric
) -> None:
    run = TrainingRun(plan, photos, tiny, make_fabric())
    run.last_good_state["network"]["last.conv.weight"].fill_(torch.nan)
    run.restore_state(run.last_good_state)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(6):
            assert run.run_step() is None
    message = r"the loss is nan at step 1 even with a step size of 0\.00016"
    with pytest.raises(sl.SightlineError, match=message):
        run.run_step()
    assert not (plan.out / "stylizer.safetensors").exists()


# ── more styles ──


def test_a_new_style_trains_its_rows_only(
    plan: TrainingPlan, photos: PhotoDataset, tiny: sl.Model, make_fabric: MakeFabric
) -> None:
    path = train_stylizer(replace(plan, steps=4), photos, tiny, make_fabric())
    base = read_fixed_style_network(path)
    extending_plan = replace(
        plan,
        styles=(plan.out.parent / "scream.png",),
        out=plan.out.with_name("more"),
        extend=path,
        steps=4,
    )
    extended = read_fixed_style_network(train_stylizer(extending_plan, photos, tiny, make_fabric()))
    assert extended.names == ("wave", "night", "scream")
    base_state = base.network.state_dict()
    for name, value in extended.network.state_dict().items():
        if ".norm." in name:
            assert torch.equal(value[:2], base_state[name]), name
            assert not torch.equal(value[2], base_state[name].mean(0)), name
        else:
            assert torch.equal(value, base_state[name]), name

    photo = smooth(side=40, seed=3)[..., :32, :]
    with torch.no_grad():
        expected = base.network(photo, base.make_mix("wave"))
        assert torch.equal(extended.network(photo, extended.make_mix("wave")), expected)


def test_a_plan_that_cannot_be_carried_out_writes_nothing(
    plan: TrainingPlan, photos: PhotoDataset, tiny: sl.Model, make_fabric: MakeFabric
) -> None:
    changes: list[tuple[dict[str, Any], str]] = [
        ({"styles": ()}, "at least one style image"),
        ({"norm": "batch"}, "room for one style, not 2"),
        ({"size": 64}, "kept with 40 pixels"),
    ]
    for change, message in changes:
        with pytest.raises(sl.SightlineError, match=message):
            train_stylizer(replace(plan, **change), photos, tiny, make_fabric())
        assert not plan.out.exists()
