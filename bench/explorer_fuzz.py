"""Requests that nobody thought of, sent to a running explorer: none may be an error of ours.

`python bench/explorer_fuzz.py [--requests N] [--store STORE] [--seed N]` starts `sightline explore`
and sends changed addresses, headers, pictures and JSON to it. It counts the statuses, stops at the
first 5xx, and measures the memory of the server.
"""

import argparse
import base64
import contextlib
import functools
import http.client
import io
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator
from pathlib import Path

from PIL import Image

ADDRESSES = (
    "/",
    "/index.html",
    "/layers/{layer}.html",
    "/units/{layer}/{number}.html",
    "/classes/{number}.html",
    "/images/{number}.html",
    "/map.html",
    "/compare.html",
    "/mistakes.html",
    "/data/attribution-of/{number}/saliency.js",
    "/data/effect-of/{layer}/{number}.js",
    "/live.html",
    "/static/sightline.css",
    "/pictures/{digest}.webp",
    "/data/index.js",
    "/api/state",
    "/api/images/u-{digest}.png",
    "/api/openapi.json",
)
PIECES = (
    "..",
    "%2e%2e%2f",
    "%00",
    "//",
    "\\",
    "<script>",
    "'",
    '"',
    "%ff%fe",
    "€",
    "~",
    "?token=x",
    ";",
)
HEADERS = ("Host", "Origin", "Cookie", "If-None-Match", "Range", "Accept", "Sec-Fetch-Site")


class Fuzzer:
    """Makes requests up."""

    def __init__(self, chance: random.Random, layers: list[str]) -> None:
        self.random = chance
        self.layers = layers
        self.picture = make_picture()

    def make_address(self) -> str:
        """An address, often spoiled."""
        text = self.random.choice(ADDRESSES).format(
            layer=self.random.choice([*self.layers, "none"]),
            number=self.random.choice([0, 1, 7, 99, 10**9, -1]),
            digest=f"{self.random.getrandbits(128):032x}",
        )
        for _ in range(self.random.choice([0, 0, 1, 2, 5])):
            place = self.random.randrange(len(text) + 1)
            text = text[:place] + self.random.choice(PIECES) + text[place:]
        return text if text.startswith("/") else f"/{text}"

    def make_headers(self) -> dict[str, str]:
        """Some headers, with odd values."""
        names = self.random.sample(HEADERS, self.random.choice([0, 0, 0, 1, 2]))
        values = ("x", "evil.example", "null", "a" * 3000, "é", "bytes=0-5", "sightline-8642=x")
        return {name: self.random.choice(values) for name in names}

    def make_body(self) -> bytes:
        """A picture's bytes, spoiled."""
        content = bytearray(self.picture)
        for _ in range(self.random.choice([0, 1, 3, 50])):
            content[self.random.randrange(len(content))] = self.random.randrange(256)
        return bytes(content[: self.random.choice([0, 9, 200, len(content), len(content)])])

    def make_question(self) -> bytes:
        """A request of the live tab, spoiled."""
        numbers = (0, 1, 5, 31, 200, -1, 10**6, 2**63, 0.5, float("nan"), "1", None, True, [], {})
        choose = self.random.choice
        question = {
            "image": choose(["s-0", "s-1", "s-1", "s-99999", "u-" + "x" * 22, "../x", 7, None]),
            "cover": choose([[], [[0, 0, 9, 9]], [[choose(numbers) for _ in range(4)]], "x"]),
            "brush": choose([None, "", "AAAA", base64.b64encode(bytes(2048)).decode()]),
            "off": choose([{}, {choose(self.layers): [choose(numbers)]}, {"none": [1]}, [1]]),
            "layer": choose([None, choose(self.layers), "none", 3, "<script>" * 100]),
            "units": choose([12, 1, choose(numbers)]),
            "attribution": choose([None, None, "saliency", "gradcam", "guided", "none"]),
        }
        for name in self.random.sample(sorted(question), self.random.choice([0, 0, 2, 4])):
            del question[name]
        text = json.dumps(question)
        if self.random.random() < 0.1:
            text = text[: self.random.randrange(len(text))]
        return text.encode()

    def make_request(self) -> tuple[str, str, dict[str, str], bytes | None]:
        """Method, address, headers and body."""
        kind = self.random.random()
        headers = self.make_headers()
        if kind < 0.08:
            return "POST", "/api/images", headers, self.make_body()
        if kind < 0.2:
            headers["Content-Type"] = "application/json"
            return "POST", "/api/answer", headers, self.make_question()
        if kind < 0.25:
            method = self.random.choice(["HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "X"])
            return method, self.make_address(), headers, None
        return "GET", self.make_address(), headers, None


@functools.cache
def make_picture() -> bytes:
    """A small PNG."""
    encoded = io.BytesIO()
    Image.radial_gradient("L").resize((90, 60)).convert("RGB").save(encoded, "PNG")
    return encoded.getvalue()


def send(
    connection: http.client.HTTPConnection, request: tuple[str, str, dict[str, str], bytes | None]
) -> tuple[int, bytes]:
    """Sends a request as it is; returns status and body."""
    method, address, headers, body = request
    # The library refuses such addresses; a server has to bear them.
    path = address.encode("utf-8").decode("latin-1").replace(" ", "")
    connection.putrequest(method, "/", skip_host="Host" in headers, skip_accept_encoding=True)
    first_line = f"{method} {path} HTTP/1.1".encode("latin-1")
    connection._buffer[0] = first_line  # type: ignore[attr-defined]
    for name, value in headers.items():
        connection.putheader(name, value.encode("latin-1", "replace"))
    if body is not None:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    answer = connection.getresponse()
    return answer.status, answer.read()


def measure_memory(process_id: int) -> float:
    """Memory of a process in MiB."""
    for line in Path(f"/proc/{process_id}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def read_layers(connection: http.client.HTTPConnection) -> list[str]:
    """Names of the layers that the explorer shows."""
    connection.request("GET", "/api/state")
    state = json.loads(connection.getresponse().read())
    return [layer["name"] for layer in state["layers"]]


def fuzz(port: int, process_id: int, requests: int, seed: int) -> None:
    """Sends the requests and prints what came of them."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    fuzzer = Fuzzer(random.Random(seed), read_layers(connection))
    statuses: Counter[int] = Counter()
    started = time.perf_counter()
    for number in range(requests):
        request = fuzzer.make_request()
        try:
            status, body = send(connection, request)
        except (http.client.HTTPException, ConnectionError):
            # The server closes a connection after what is no HTTP.
            connection.close()
            statuses[0] += 1
            continue
        statuses[status] += 1
        if status >= 500:
            sys.exit(f"{status} after {number} requests: {request!r:.600} {body!r:.300}")
        if number % max(1, requests // 20) == 0:
            memory = measure_memory(process_id)
            seconds = time.perf_counter() - started
            print(f"{number:>8,} requests, {seconds:6.0f} s, {memory:7.1f} MiB", flush=True)
    print(f"{requests:,} requests, {measure_memory(process_id):.1f} MiB: {dict(statuses)}")


@contextlib.contextmanager
def open_explorer(store: str | None) -> Generator[tuple[int, int]]:
    """A running explorer: its port and the id of its process."""
    words = [sys.executable, "-m", "sightline", "explore", "--json", "--port", "0", "--quiet"]
    words += ["--store", store] if store else []
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                raise RuntimeError("the explorer did not start")
            yield json.loads(line)["port"], process.pid
        finally:
            process.terminate()


def main() -> None:
    """Reads the options and runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--store", default=None)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with open_explorer(options.store) as (port, process_id):
        fuzz(port, process_id, options.requests, options.seed)


if __name__ == "__main__":
    main()
