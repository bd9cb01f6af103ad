"""A client of a web application in this process: requests as they are, without a network."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes


@dataclass(frozen=True)
class WebAnswer:
    """An answer: status, headers (of one that is there twice the last) and body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class WebClient:
    """Sends requests to an ASGI application, one after the other, in an event loop of its own."""

    def __init__(self, application: Any, host: str = "127.0.0.1:8642") -> None:
        self.application = application
        self.host = host
        self.loop = asyncio.new_event_loop()
        self.lifespan_input: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.lifespan_output: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.lifespan = self.loop.create_task(self.run_lifespan())
        self.lifespan_input.put_nowait({"type": "lifespan.startup"})
        started = self.loop.run_until_complete(self.lifespan_output.get())
        assert started["type"] == "lifespan.startup.complete", started

    async def run_lifespan(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        await self.application(scope, self.lifespan_input.get, self.lifespan_output.put)

    def close(self) -> None:
        """Ends the application."""
        self.lifespan_input.put_nowait({"type": "lifespan.shutdown"})
        self.loop.run_until_complete(self.lifespan)
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    def get(self, path: str, **headers: str) -> WebAnswer:
        return self.loop.run_until_complete(self.send("GET", path, headers))

    def post(self, path: str, body: bytes, **headers: str) -> WebAnswer:
        return self.loop.run_until_complete(self.send("POST", path, headers, body))

    def post_json(self, path: str, content: Any, **headers: str) -> WebAnswer:
        headers = {"content_type": "application/json", **headers}
        return self.post(path, json.dumps(content).encode(), **headers)

    async def send(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes = b""
    ) -> WebAnswer:
        """Sends one request. Underscores in names of headers are hyphens; an empty one is left
        out.
        """
        raw_path, _, query = path.partition("?")
        named = {"host": self.host, **{k.replace("_", "-"): v for k, v in headers.items()}}
        if method == "POST":
            named.setdefault("content-length", str(len(body)))
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote_to_bytes(raw_path).decode("utf-8", "replace"),
            "raw_path": raw_path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(k.encode(), v.encode("latin-1")) for k, v in named.items() if v],
            "client": ("127.0.0.1", 50_000),
            "server": ("127.0.0.1", 8642),
            "state": {},
        }
        messages = [{"type": "http.request", "body": body, "more_body": False}]
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return messages.pop() if messages else await asyncio.Future()

        async def collect(message: dict[str, Any]) -> None:
            sent.append(message)

        await self.application(scope, receive, collect)
        start = sent[0]
        answer_headers = {key.decode(): value.decode() for key, value in start["headers"]}
        content = b"".join(message.get("body", b"") for message in sent[1:])
        return WebAnswer(start["status"], answer_headers, content)
