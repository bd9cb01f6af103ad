"""What `sightline doctor` says, against what the libraries say themselves."""

import json
import subprocess
import sys
from importlib import metadata

import pytest
import torch

from sightline.app.cli.main import main
from sightline.app.machine import facts
from sightline.app.machine.facts import (
    collect_machine_facts,
    find_missing_packages,
    format_machine_facts,
)
from sightline.models.overrides.fast_operations import is_available


def test_facts_are_those_of_the_libraries(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["versions"]["torch"] == metadata.version("torch")
    assert summary["versions"]["sightline"] == metadata.version("sightline")
    assert summary["python"] == ".".join(map(str, sys.version_info[:3]))
    assert summary["threads"] == torch.get_num_threads()
    assert "cpu" in summary["devices"]
    for operation in ("packed convolution", "mode counts"):
        assert summary["fast_paths"][operation] == is_available(operation)
    assert summary["cache"]["folder"].endswith("sightline")


def test_lines_name_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    words = [line.split()[0] for line in lines]
    assert {"versions", "devices", "threads", "cache", "extras"} <= set(words)
    assert "packed convolution" in "\n".join(lines)


def test_extras_and_what_they_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        facts,
        "requires",
        lambda _: [
            "torch>=2",
            "pytest>=8; extra == 'nosuchextra'",
            'no.such-package>=1; extra == "nosuchextra"',
            "numpy[all]>=2; extra == 'there'",
            "ruff; extra == 'test'",
        ],
    )
    assert find_missing_packages() == {"nosuchextra": ["no.such-package"], "there": []}


def test_torch_that_fails_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError("libcudart.so.99: cannot open shared object file")

    monkeypatch.setattr(facts, "_ask_torch", fail)
    found = collect_machine_facts()
    assert found.threads is None
    assert any("libcudart.so.99" in line for line in format_machine_facts(found))


def test_the_cache_is_looked_at_without_torch() -> None:
    code = (
        "import sys; from sightline.app.cli.main import main; main(['cache', 'info']); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
