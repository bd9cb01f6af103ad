"""What every request to the explorer's server has to pass, and the headers of every answer.

On this machine only, the server answers requests that are addressed to this machine: a page of
another site whose name was made to point here (DNS rebinding) is refused. Served to others, it
asks for a token, which a link brings and a cookie keeps.
"""

import json
import re
import secrets
from collections.abc import Callable, Collection, Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

# The types of the ASGI specification.
Scope = dict[str, Any]
Receive = Callable[[], Any]
Send = Callable[[Any], Any]

CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "media-src 'self' blob:",
        "connect-src 'self'",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]
)

SECURITY_HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
}

MAX_BODY_BYTES = 32_000_000  # of a picture's file
MAX_JSON_BYTES = 4_000_000
PICTURE_PATH = "/api/images"
SAFE_METHODS = ("GET", "HEAD")

HOST_HEADER = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")


class RefusedRequestError(Exception):
    """A request that is not answered: its status, and why in one line."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class RequestGuard:
    """ASGI middleware in front of the explorer's application.

    Args:
        application: What answers the requests that pass.
        hosts: The host names that requests may be addressed to; None for any.
        token: What requests must bring; None where the server listens on this machine only.
        cookie: The name of the cookie that keeps the token. Cookies of all ports of a host are
            shared, so it names the port.
    """

    def __init__(
        self,
        application: Any,
        *,
        hosts: Collection[str] | None,
        token: str | None = None,
        cookie: str = "sightline",
    ) -> None:
        self.application = application
        self.hosts = None if hosts is None else frozenset(hosts)
        self.token = token
        self.cookie = cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or hands it on."""
        if scope["type"] != "http":
            await self.application(scope, receive, send)
            return

        async def send_guarded(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                extra = [(key.encode(), value.encode()) for key, value in SECURITY_HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            await send(message)

        headers = read_headers(scope)
        try:
            self.check_host(headers)
            self.check_origin(scope, headers)
            check_body_size(scope, headers)
            redirect = self.check_token(scope, headers)
        except RefusedRequestError as refusal:
            await send_refusal(send_guarded, refusal)
            return
        if redirect is not None:
            await self.send_cookie(send_guarded, redirect)
            return
        await self.application(scope, receive, send_guarded)

    def check_host(self, headers: Mapping[str, str]) -> None:
        """Refuses a request that is addressed to another host name."""
        if self.hosts is None:
            return
        host = split_host(headers.get("host", ""))
        if host not in self.hosts:
            raise RefusedRequestError(
                403, "this server answers requests to this machine's own name only"
            )

    def check_origin(self, scope: Scope, headers: Mapping[str, str]) -> None:
        """Refuses a request that a page of another site sends."""
        origin = headers.get("origin")
        if origin is not None and urlsplit_safely(origin) != headers.get("host"):
            raise RefusedRequestError(403, "requests from other sites are refused")
        is_cross_site = headers.get("sec-fetch-site") in ("cross-site", "same-site")
        is_navigation = headers.get("sec-fetch-mode") == "navigate"
        if is_cross_site and not (is_navigation and scope["method"] in SAFE_METHODS):
            raise RefusedRequestError(403, "requests from other sites are refused")

    def check_token(self, scope: Scope, headers: Mapping[str, str]) -> str | None:
        """Refuses a request without the token.

        Returns the address to go on with where the link brought the token, else None.
        """
        if self.token is None:
            return None
        token = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]
        if scope["method"] in SAFE_METHODS and self.is_token(token):
            return scope.get("path", "/").rpartition("/")[2] or "./"
        if self.is_token(read_cookies(headers).get(self.cookie, "")):
            return None
        raise RefusedRequestError(
            403, "this server asks for a token: open the link that it printed"
        )

    def is_token(self, text: str) -> bool:
        """Whether a text is the token; takes equally long for all texts of its length."""
        return self.token is not None and secrets.compare_digest(text.encode(), self.token.encode())

    async def send_cookie(self, send: Send, address: str) -> None:
        """Keeps the token in a cookie, and leads to the same page without it in the address."""
        cookie = f"{self.cookie}={self.token}; HttpOnly; SameSite=Lax; Path=/"
        # A relative address: the path came from outside, and a `//host/` must not lead elsewhere.
        location = "./" if ":" in address else address
        headers = [(b"location", location.encode("ascii", "replace")), (b"content-length", b"0")]
        headers.append((b"set-cookie", cookie.encode()))
        await send({"type": "http.response.start", "status": 303, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def check_body_size(scope: Scope, headers: Mapping[str, str]) -> None:
    """Refuses a body that is too large, or whose size is not said before it comes."""
    if scope["method"] in SAFE_METHODS:
        return
    if "transfer-encoding" in headers or "content-length" not in headers:
        raise RefusedRequestError(411, "say the size of what is sent (Content-Length)")
    length = headers["content-length"]
    max_bytes = MAX_BODY_BYTES if scope["path"] == PICTURE_PATH else MAX_JSON_BYTES
    is_number = length.isascii() and length.isdigit() and len(length) <= 12
    if not is_number or int(length) > max_bytes:
        raise RefusedRequestError(413, f"more than {max_bytes / 1e6:g} MB")


def read_headers(scope: Scope) -> dict[str, str]:
    """The headers of a request by name; of one that is there twice the last."""
    return {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}


def read_cookies(headers: Mapping[str, str]) -> dict[str, str]:
    """The cookies of a request by name."""
    cookies: dict[str, str] = {}
    for pair in headers.get("cookie", "").split(";"):
        name, _, value = pair.strip().partition("=")
        cookies[name] = value
    return cookies


def split_host(header: str) -> str:
    """The host name of a Host header, without its port: «[::1]:80» → «::1»; empty for no such."""
    match = HOST_HEADER.fullmatch(header.strip().lower())
    return "" if match is None else match["name"].strip("[]")


def urlsplit_safely(url: str) -> str:
    """The host and port of a URL; empty for what is none."""
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ""


async def send_refusal(send: Send, refusal: RefusedRequestError) -> None:
    """Answers with the reason as JSON."""
    body = json.dumps({"error": refusal.reason}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
