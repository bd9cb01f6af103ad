"""Every command is known by name and summary, and its function is there."""

from importlib import import_module

import pytest

from sightline.app.cli import application
from sightline.app.cli.application import make_app, run_command
from sightline.app.cli.declarations import read_method_declarations
from sightline.app.cli.main import main


@pytest.mark.parametrize(
    ("module", "summaries", "prefix"),
    [
        ("commands.general", application.GENERAL_COMMANDS, ""),
        ("commands.general", application.CACHE_COMMANDS, "cache_"),
        ("commands.scan", {**application.SCAN_COMMANDS, **application.STORE_COMMANDS}, ""),
        ("commands.units", application.UNIT_COMMANDS, ""),
        ("commands.stylizer", application.STYLIZER_COMMANDS, ""),
    ],
    ids=["general", "cache", "scan", "units", "stylizer"],
)
def test_summaries_are_those_of_the_functions(
    module: str, summaries: dict[str, str], prefix: str
) -> None:
    commands = import_module(f"sightline.app.cli.{module}")
    for name, summary in summaries.items():
        assert getattr(commands, prefix + name).__doc__.splitlines()[0] == summary


def test_every_method_and_no_other_name_is_a_command() -> None:
    names = {name for name in make_app() if not name.startswith("-")}
    others = {
        *application.GENERAL_COMMANDS,
        *application.SCAN_COMMANDS,
        *application.UNIT_COMMANDS,
        *application.EXPLORER_COMMANDS,
        *application.DIAGNOSIS_COMMANDS,
        "cache",
        "store",
        "stylizer",
    }
    assert names == others | set(read_method_declarations())


def test_commands_of_commands() -> None:
    app = make_app()
    for name, summaries in (
        ("cache", application.CACHE_COMMANDS),
        ("store", application.STORE_COMMANDS),
        ("stylizer", application.STYLIZER_COMMANDS),
    ):
        assert {inner for inner in app[name] if not inner.startswith("-")} == set(summaries)


@pytest.mark.parametrize(
    "words",
    [["salience"], ["samples", "--jsn"], ["store", "inf"], ["again"], ["saliency", "--kind"]],
)
def test_what_is_no_command_has_status_2(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.err
    assert "Traceback" not in captured.err


def test_a_command_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["samples"]) == 0
    assert "rocket" in capsys.readouterr().out.splitlines()
