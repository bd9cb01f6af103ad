"""Whether the hub can be reached, asked of servers on this machine."""

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from huggingface_hub import constants

from sightline.models.zoo.libraries.hub import can_reach, use_reachable_hub


class Refusal(BaseHTTPRequestHandler):
    """A server that is there and answers 403."""

    def do_HEAD(self) -> None:
        self.send_response(403)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_server_that_refuses_is_there() -> None:
    with HTTPServer(("127.0.0.1", 0), Refusal) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert can_reach(f"http://127.0.0.1:{server.server_port}", 5)
        thread.join()


def test_a_silent_server_is_not_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        assert not can_reach(f"http://127.0.0.1:{silent.getsockname()[1]}", 0.2)
        assert time.monotonic() - start < 3
    assert not can_reach("no address", 0.2)


@pytest.mark.parametrize("reachable", [True, False])
def test_the_client_reads_only_its_cache_without_a_hub(
    monkeypatch: pytest.MonkeyPatch, reachable: bool
) -> None:
    monkeypatch.setattr("sightline.models.zoo.libraries.hub.can_reach", lambda *_: reachable)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with use_reachable_hub():
        assert constants.HF_HUB_OFFLINE is not reachable
    assert constants.HF_HUB_OFFLINE is False
