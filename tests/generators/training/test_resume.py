"""The parts of a checkpoint by themselves; `tests/hostile/test_training.py` damages whole ones."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import small_network

import sightline as sl
from sightline.generators.training.resume import (
    check_same_plan,
    check_tensors,
    describe_storage,
    digest_file,
    digest_loss_network,
    read_checkpoint_file,
    write_checkpoint_file,
)

STATE: dict[str, Any] = {
    "network": {"weight": torch.tensor([0.1, 0.2])},
    "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}},
    "step": 1,
    "slowed": 2,
}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Whole steps stay whole numbers, and every bit of a loss is kept."""
    rows = [{"step": 1, "loss": 0.1 + 0.2}]
    write_checkpoint_file(tmp_path, {"lr": "0.01"}, STATE, rows)
    checkpoint = read_checkpoint_file(tmp_path / "checkpoint.pt")
    assert checkpoint.plan == {"lr": "0.01"}
    assert checkpoint.rows == rows
    assert type(checkpoint.rows[0]["step"]) is int
    assert (checkpoint.state.step, checkpoint.state.slowed) == (1, 2)
    assert torch.equal(checkpoint.state.network["weight"], STATE["network"]["weight"])
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_digests_tell_contents_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"one")
    assert digest_file(path) == hashlib.sha256(b"one").hexdigest()[:16]
    assert digest_file(Path("rocket")) == "rocket", "a sample has no file here"

    model = sl.load(small_network(), size=32)
    digest = digest_loss_network(model)
    assert digest == digest_loss_network(sl.load(small_network(), size=32))
    assert digest.startswith("Sequential ")
    with torch.no_grad():
        next(model.network.parameters())[0, 0, 0, 0] += 1e-6
    assert digest_loss_network(model) != digest


def test_the_first_difference_of_two_plans_is_named() -> None:
    path = Path("checkpoint.pt")
    plan = {"lr": "0.01", "seed": "0"}
    check_same_plan(plan, dict(plan), path)
    for saved, message in (
        ({"lr": "0.02", "seed": "1"}, "with lr 0.02, not 0.01"),
        ({"lr": "0.01"}, "with seed none, not 0"),
        ({**plan, "a\nb": "x" * 999}, r"with a\\nb x+…, not none"),
    ):
        with pytest.raises(sl.SightlineError, match=message) as caught:
            check_same_plan(saved, plan, path)
        assert "\n" not in str(caught.value)


def test_tensors_have_the_names_shapes_and_types_expected() -> None:
    path = Path("checkpoint.pt")
    expected = {"a": torch.zeros(2, 3), "b": torch.zeros((), dtype=torch.long)}
    check_tensors({"a": torch.ones(2, 3), "b": torch.tensor(7)}, expected, "the network", path)
    for tensors, message in (
        ({"a": torch.ones(2, 3)}, "the network lacks b"),
        ({**expected, "c": torch.ones(1)}, "the network has no c"),
        ({**expected, "a": torch.ones(3, 2)}, r"a of the network is float32 \(3, 2\); it must be"),
        ({**expected, "b": torch.tensor(7.0)}, r"is float32 \(\); it must be int64 \(\)"),
        ({**expected, "a": torch.full((2, 3), torch.inf)}, "holds NaN or infinity"),
    ):
        with pytest.raises(sl.SightlineError, match=message):
            check_tensors(tensors, expected, "the network", path)
    assert describe_storage(torch.zeros(2, device="meta")) == "meta float32 (2,)"
    assert describe_storage(torch.eye(2).to_sparse()) == "sparse float32 (2, 2)"
