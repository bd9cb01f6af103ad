"""The scripts that made the shipped networks: checkpoints that are cut, foreign or hold code."""

import importlib.util
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT
from torch import nn

import sightline as sl

SCRIPTS = ROOT / "training"


def load_journal() -> Any:
    spec = importlib.util.spec_from_file_location("journal", SCRIPTS / "journal.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


journal = load_journal()


def make_parts(width: int = 5, seed: int = 0) -> dict[str, Any]:
    """A network after one step, and its optimizer."""
    torch.manual_seed(seed)
    network = nn.Linear(3, width)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    network(torch.rand(2, 3)).square().sum().backward()
    optimizer.step()
    return {"net": network, "optimizer": optimizer}


def save_parts(folder: Path, parts: dict[str, Any], rows: Any = ({"loss": 1.5},)) -> Path:
    path = folder / "checkpoint.pt"
    state = {name: part.state_dict() for name, part in parts.items()} | {"step": 7}
    journal.save_checkpoint(path, state, folder / "log.jsonl", rows)
    return path


def resume(path: Path, parts: dict[str, Any]) -> tuple[int, list[Any]]:
    return journal.load_checkpoint(path, path.with_name("log.jsonl"), parts, "step")


def test_a_whole_checkpoint_is_taken_over(tmp_path: Path) -> None:
    saved, parts = make_parts(), make_parts(seed=1)
    path = save_parts(tmp_path, saved)
    path.with_name("log.jsonl").write_text("ahead\n", encoding="utf-8")
    assert resume(path, parts) == (7, [{"loss": 1.5}])
    assert parts["net"].weight.equal(saved["net"].weight)
    assert path.with_name("log.jsonl").read_text(encoding="utf-8") == '{"loss": 1.5}\n'


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def hold_code(path: Path) -> None:
    path.write_bytes(pickle.dumps({"net": Path("x")}))


def hold_a_list(path: Path) -> None:
    torch.save([1, 2], path)


def hold_weights_alone(path: Path) -> None:
    torch.save(make_parts()["net"].state_dict(), path)


def hold_another_network(path: Path) -> None:
    save_parts(path.parent, make_parts(width=6))


def exchange_moments(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    kept = state["optimizer"]["state"]
    kept[0], kept[1] = kept[1], kept[0]
    torch.save(state, path)


def replace_value(name: str, value: Any) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        state = torch.load(path, weights_only=True)
        torch.save({**state, name: value}, path)

    return damage


DAMAGES: dict[str, Callable[[Path], None]] = {
    "cut": cut,
    "empty": empty,
    "code": hold_code,
    "list": hold_a_list,
    "weights": hold_weights_alone,
    "other network": hold_another_network,
    "other moments": exchange_moments,
    "net": replace_value("net", 3),
    "optimizer": replace_value("optimizer", {}),
    "step": replace_value("step", "7\n"),
    "negative step": replace_value("step", -1),
    "rows": replace_value("rows", [{"loss": "high"}]),
    "no rows": replace_value("rows", None),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_no_checkpoint_of_the_run_is_one_line(damage: str, tmp_path: Path) -> None:
    path = save_parts(tmp_path, make_parts())
    log_path = path.with_name("log.jsonl")
    DAMAGES[damage](path)
    log_path.write_text("as it was\n", encoding="utf-8")
    with pytest.raises(sl.SightlineError, match=r"checkpoint\.pt is no whole checkpoint") as caught:
        resume(path, make_parts())
    assert "\n" not in str(caught.value)
    assert log_path.read_text(encoding="utf-8") == "as it was\n"


@pytest.mark.parametrize("damage", ["cut", "weights", "list"])
def test_averaged_weights_of_no_checkpoint_are_one_line(damage: str, tmp_path: Path) -> None:
    path = save_parts(tmp_path, make_parts())
    DAMAGES[damage](path)
    with pytest.raises(sl.SightlineError, match="is no whole checkpoint of this run"):
        journal.read_averaged_weights(path)


def test_a_script_says_it_in_one_line(tmp_path: Path) -> None:
    path = save_parts(tmp_path, make_parts())
    command = [sys.executable, SCRIPTS / "export.py", "--checkpoint", path, "--out", tmp_path / "a"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "has no averaged weights" in done.stderr
    assert not (tmp_path / "a").exists()
