"""Where the server listens: this machine, a free port, and a token for everybody else."""

import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from sightline.app.web.delivery import server
from sightline.app.web.delivery.server import is_loopback, open_server_address
from sightline.errors import SightlineError


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("localhost", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("192.168.0.7", False),
        ("::", False),
        ("localhost.example", False),
    ],
)
def test_what_is_this_machine(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected


def test_a_port_in_use_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            SightlineError, match=f"can't listen on port {port} of 127.0.0.1: "
        ) as e:
            open_server_address(port=port)
        assert "\n" not in str(e.value)


def test_the_usual_port_in_use_gives_a_free_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(server, "DEFAULT_PORT", taken.getsockname()[1])
        address = open_server_address()
        assert address.port != taken.getsockname()[1]
        assert address.link == f"http://127.0.0.1:{address.port}/"
        address.listener.close()


def test_others_need_a_token() -> None:
    first, second = (open_server_address("0.0.0.0", 0) for _ in range(2))
    assert first.token is not None
    assert len(first.token) >= 32
    assert first.token != second.token
    assert first.link.endswith(f":{first.port}/?token={first.token}")
    assert "0.0.0.0" not in first.link
    for address in (first, second):
        address.listener.close()


@pytest.mark.parametrize("host", ["no such host", "203.0.113.7", "x" * 300])
def test_a_host_of_others_is_one_line(host: str) -> None:
    with pytest.raises(SightlineError) as error:
        open_server_address(host, 0)
    assert len(str(error.value)) < 200


def test_a_port_out_of_range() -> None:
    with pytest.raises(SightlineError, match="between 0 and 65535"):
        open_server_address(port=70_000)


SERVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from helpers import LABELS, small_network, smooth
import sightline as sl
from sightline.app.web.delivery.server import open_server_address, serve
from sightline.app.web.explorer.explorer import Explorer
folder = Path(sys.argv[2])
for number in range(3):
    sl.write(smooth(side=40, seed=number), folder / "photos" / f"{number}.png")
model = sl.load(small_network(), labels=LABELS, size=32)
scan = sl.scan(model, folder / "photos", store=folder / "a.scan")
serve(
    Explorer(scan, model, is_served=True),
    open_server_address(port=0),
    lambda link: print(link, flush=True),
)
"""


def test_a_server_that_runs(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> None:
    tests = str(request.config.rootpath / "tests")
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, tests, str(tmp_path_factory.mktemp("served"))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        link = process.stdout.readline().strip()
        assert link.startswith("http://127.0.0.1:"), process.communicate()[1]
        with urllib.request.urlopen(f"{link}api/state", timeout=30) as answer:
            assert json.load(answer)["images"] == 3
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["server"] is None
        with urllib.request.urlopen(f"{link}static/sightline.css", timeout=30) as answer:
            assert answer.headers["content-type"] == "text/css; charset=utf-8"
        rebound = urllib.request.Request(link, headers={"Host": "evil.example"})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(rebound, timeout=30)
    finally:
        process.send_signal(2)
        out, err = process.communicate(timeout=30)
    assert "Traceback" not in err
    assert not out
