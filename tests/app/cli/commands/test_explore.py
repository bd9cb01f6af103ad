"""`sightline explore` and `sightline export`: what they print, write and refuse."""

import json
import shlex
import socket
from pathlib import Path
from typing import Any

import pytest
from helpers import smooth
from web_scan import make_two_scans

import sightline as sl
from sightline.app.cli.application import EXPLORER_COMMANDS
from sightline.app.cli.commands import explore as explore_commands
from sightline.app.cli.main import main
from sightline.app.web.delivery import server
from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.pictures.synthesis import UnitSynthesis
from sightline.app.web.site import routes

NETWORK = ("--model", "helpers:small_network", "--size", "32")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with six pictures in two classes, and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number in range(6):
        folder = Path("photos") / ("ant", "bee")[number % 2]
        sl.write(smooth(side=40, seed=number), folder / f"{number}.png")
    return tmp_path


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Explorer]:
    """What would be served; the server does not wait for requests."""
    explorers: list[Explorer] = []

    def serve(explorer: Explorer, address: server.ServerAddress, on_start: Any) -> None:
        explorers.append(explorer)
        on_start(address.link)

    monkeypatch.setattr(server, "serve", serve)
    return explorers


@pytest.fixture
def short_site(monkeypatch: pytest.MonkeyPatch) -> None:
    """A site of three pages only, and syntheses of one step."""
    monkeypatch.setattr(
        routes, "ROUTES", tuple(route for route in routes.ROUTES if route.name in ("map", "live"))
    )
    monkeypatch.setattr(UnitSynthesis, "steps", 1, raising=False)


@pytest.mark.parametrize("name", EXPLORER_COMMANDS)
def test_help_and_the_summaries_announced(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert "--synthesis" in capsys.readouterr().out
    summary = (getattr(explore_commands, name).__doc__ or "").split("\n")[0]
    assert summary == EXPLORER_COMMANDS[name]


def test_explore_scans_serves_and_prints_the_link(
    served: list[Explorer], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["explore", "photos", "--store", "a.scan", *NETWORK, "--port", "0", "--quiet"]
    assert main(words) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0].startswith("6 images, ")
    assert lines[1].startswith("http://127.0.0.1:")
    assert printed.err == ""
    (explorer,) = served
    assert explorer.is_served
    assert not explorer.has_synthesis
    assert explorer.command == (
        "sightline explore photos --store a.scan --model helpers:small_network --size 32"
    )
    # The store is enough from now on, but for the network: it is code, which no store leads to.
    words = ["explore", "--store", "a.scan", "--port", "0", "--json", "--quiet"]
    assert main(words) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["link"] == f"http://127.0.0.1:{answer['port']}/"
    assert served[1].model is None
    assert main([*words, "--model", "helpers:small_network"]) == 0
    assert served[2].model is not None


@pytest.mark.parametrize("size", [(), ("--size", "32")], ids=["own size", "size"])
def test_commands_on_pages_bring_the_network_and_its_settings(
    size: tuple[str, ...], served: list[Explorer], capsys: pytest.CaptureFixture[str]
) -> None:
    """A store leads to no code, and to no settings of a network that is made by code."""
    settings = ["--mean", "0.4", "0.5", "0.6", "--std", "0.2", "0.3", "0.4", *size]
    network = ["--model", "helpers:small_network", "--labels", "ant,bee,cat,dog,elk", *settings]
    words = ["explore", "photos", "--store", "my photos.scan", *network, "--port", "0", "--quiet"]
    assert main(words) == 0
    assert main([*shlex.split(served[0].command)[1:], "--port", "0", "--quiet"]) == 0

    for explorer in served:
        command = explorer.format_command("patches", "--layer", "conv1", "--unit", "3")
        assert main([*shlex.split(command)[1:], "--quiet", "--out", "out"]) == 0
        assert Path("out", "patches.png").is_file()
    assert capsys.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.usefixtures("short_site")
def test_export_with_synthesis_and_table(capsys: pytest.CaptureFixture[str]) -> None:
    scan = ["scan", "photos", "--store", "a.scan", "--model", "helpers:small_network"]
    assert main([*scan, "--size", "32", "--layers", "conv1", "--quiet"]) == 0
    capsys.readouterr()
    words = ["export", "site", "--store", "a.scan", "--model", "helpers:small_network", "--quiet"]
    assert main([*words, "--synthesis", "--parquet", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    files = [path for path in Path("site").rglob("*") if path.is_file()]
    assert summary["complete"] is True
    assert summary["files"] == len(files) - 2  # the marker and the table
    assert Path(summary["page"]).is_file()
    assert Path(summary["parquet"]).is_file()
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("site/index.html (")


@pytest.fixture
def two_stores(place: Path) -> None:
    """The stores of two networks over the same 60 images."""
    make_two_scans(place)


@pytest.mark.usefixtures("two_stores", "short_site")
def test_a_comparison_and_mistakes_are_pages(
    served: list[Explorer], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["explore", "--store", "new.scan", "--port", "0", "--quiet", "--compare", "old.scan"]
    assert main(words) == 0
    (explorer,) = served
    assert explorer.compared_scan is not None
    assert explorer.compared_scan.path.name == "old.scan"
    assert not explorer.has_mistakes
    assert explorer.command == "sightline explore --store new.scan --compare old.scan"
    # Without the network there is no test of what causes a mistake.
    assert main(["export", "site", "--store", "new.scan", "--mistakes", "--quiet"]) == 1
    assert not Path("site", "mistakes.html").exists()
    assert main(["export", "site", "--store", "new.scan", "--compare", "none.scan"]) == 1
    assert "there is no store 'none.scan'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["explore", "--store", "none.scan"], "there is no store 'none.scan'"),
        (["export", "photos", "--store", "a.scan"], "is no exported site"),
        (["explore", "none/", "--store", "a.scan"], "none"),
        (["explore", "--store", "photos"], "is a folder of pictures, not a store"),
        (["explore", "--host", "no.such.host.invalid", "--port", "0"], "no address of this"),
    ],
)
def test_refusals_are_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--quiet"]) in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not Path("a.scan").exists()


def test_a_port_in_use_is_noticed_before_the_scan(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["explore", "photos", "--store", "a.scan", "--port", port, "--quiet"]) == 1
    assert f"can't listen on port {port}" in capsys.readouterr().err
    assert not Path("a.scan").exists()


def test_another_networks_store(served: list[Explorer], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scan", "photos", "--store", "a.scan", *NETWORK, "--quiet"]) == 0
    words = ["explore", "--store", "a.scan", "--model", "sightnet", "--port", "0", "--quiet"]
    assert main(words) == 1
    assert "was made with helpers:small_network, not sightnet" in capsys.readouterr().err
    assert served == []


def test_synthesis_needs_the_network(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], served: list[Explorer]
) -> None:
    assert main(["scan", "photos", "--store", "a.scan", *NETWORK, "--quiet"]) == 0
    capsys.readouterr()

    def refuse(*_: object) -> None:
        raise sl.SightlineError("its weights are gone")

    monkeypatch.setattr(sl.Scan, "model", refuse)
    words = ["explore", "--store", "a.scan", "--port", "0", "--quiet"]
    assert main(words) == 0
    assert "without the live tab: its weights are gone" in capsys.readouterr().out
    assert main([*words, "--synthesis"]) == 1
    assert "--synthesis needs the network: its weights are gone" in capsys.readouterr().err
    assert len(served) == 1
