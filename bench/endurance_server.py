"""The requests of `endurance.py`: an explorer that is asked by two at once, one of them hostile."""

import contextlib
import http.client
import json
import random
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from endurance_cases import Outcome
from explorer_fuzz import Fuzzer, measure_memory, open_explorer, read_layers, send

# Requests before which the server fills what it keeps: pictures that pages asked for, and images.
WARM_REQUESTS = 50_000
# What the memory may grow afterwards.
GROWTH = 1.15
# Between two rounds of the visitor who reads beside the hostile requests.
PAUSE_SECONDS = 0.5
PAGES = ("/index.html", "/map.html", "/live.html", "/data/index.js", "/static/sightline.css")
QUESTION = {"image": "s-1", "cover": [[2, 2, 12, 9]], "units": 5, "attribution": "gradcam"}


class Visitor:
    """Reads the same pages and asks the same question again and again; all must stay as it was."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.expected = self.read_all()
        self.complaint = ""
        self.thread = threading.Thread(target=self.visit, daemon=True)
        self.thread.start()

    def read_all(self) -> Mapping[str, bytes]:
        """Each page, and the answer to the question."""
        answers = {}
        for page in PAGES:
            self.connection.request("GET", page)
            answers[page] = self.read_answer(page)
        headers = {"Content-Type": "application/json"}
        self.connection.request("POST", "/api/answer", json.dumps(QUESTION), headers)
        answer = json.loads(self.read_answer("the question"))
        answer.pop("seconds", None)
        answers["the question"] = json.dumps(answer).encode()
        return answers

    def read_answer(self, name: str) -> bytes:
        answer = self.connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{name} is answered with {answer.status}: {body!r:.200}")
        return body

    def visit(self) -> None:
        try:
            while True:
                time.sleep(PAUSE_SECONDS)
                answers = self.read_all()
                changed = [name for name in answers if answers[name] != self.expected[name]]
                if changed:
                    raise RuntimeError(f"the visitor reads another {changed[0]} than at first")
        except Exception as error:  # noqa: BLE001 - the case that runs next tells of it
            self.complaint = f"{type(error).__name__}: {error}"


class Requests:
    """Changed addresses, headers, pictures and JSON for an explorer that someone else reads."""

    def __init__(self, folder: Path) -> None:
        self.resources = contextlib.ExitStack()
        port, self.process_id = self.resources.enter_context(open_explorer(None))
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        self.layers = read_layers(self.connection)
        self.visitor = Visitor(port)
        self.sent = 0
        self.warm_memory = 0.0

    def run(self, _number: int, chance: random.Random) -> Outcome:
        if self.visitor.complaint:
            raise RuntimeError(self.visitor.complaint)
        memory = self.check_memory()
        request = Fuzzer(chance, self.layers).make_request()
        try:
            status, body = send(self.connection, request)
        except (http.client.HTTPException, ConnectionError):
            # The server closes a connection after what is no HTTP.
            self.connection.close()
            return Outcome("refused", f"closed, {memory}")
        if status >= 500:
            raise RuntimeError(f"{status} to {request!r:.600}: {body!r:.300}")
        return Outcome("refused" if status >= 400 else "right", f"{status}, {memory}")

    def check_memory(self) -> str:
        """The memory of the server. RuntimeError where it grows after it was warm."""
        memory = measure_memory(self.process_id)
        if not memory:
            raise RuntimeError("the server has ended")
        self.sent += 1
        if self.sent == WARM_REQUESTS:
            self.warm_memory = memory
        elif self.sent > WARM_REQUESTS and memory > GROWTH * self.warm_memory:
            raise RuntimeError(f"memory grew from {self.warm_memory:.0f} to {memory:.0f} MiB")
        return f"{memory:.0f} MiB"
