"""What passes the guard: this machine's own names, this site's own pages, the token's bearer."""

from typing import Any

import pytest
from web_client import WebClient

from sightline.app.web.delivery.guard import (
    MAX_BODY_BYTES,
    MAX_JSON_BYTES,
    SECURITY_HEADERS,
    RequestGuard,
)
from sightline.app.web.delivery.server import LOOPBACK_HOSTS

TOKEN = "a-token-of-many-letters"


async def say_hello(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


@pytest.fixture
def local() -> Any:
    client = WebClient(RequestGuard(say_hello, hosts=LOOPBACK_HOSTS))
    yield client
    client.close()


@pytest.fixture
def public() -> Any:
    client = WebClient(RequestGuard(say_hello, hosts=None, token=TOKEN, cookie="sightline-8642"))
    yield client
    client.close()


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8642", "localhost", "LOCALHOST:1", "[::1]:8642", "127.0.0.1"]
)
def test_this_machines_names(local: WebClient, host: str) -> None:
    assert local.get("/", host=host).body == b"hello"


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8642",
        "127.0.0.1.evil.example",
        "localhost.evil.example:80",
        "127.0.0.2",
        "[::2]",
        "[::1].evil.example",
        "0.0.0.0:8642",
        "user@127.0.0.1",
        " ",
        "",
    ],
)
def test_names_of_others_are_refused(local: WebClient, host: str) -> None:
    assert local.get("/", host=host).status == 403


def test_every_answer_has_the_headers(local: WebClient) -> None:
    for host in ("127.0.0.1", "evil.example"):
        headers = local.get("/", host=host).headers
        assert headers.items() >= SECURITY_HEADERS.items()
    policy = SECURITY_HEADERS["content-security-policy"]
    assert "unsafe" not in policy
    assert "http" not in policy
    assert policy.startswith("default-src 'none'")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://127.0.0.1:8642"}, 200),
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://["}, 403),
        ({"sec_fetch_site": "same-origin"}, 200),
        ({"sec_fetch_site": "none"}, 200),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "same-site", "sec_fetch_mode": "navigate"}, 403),
    ],
)
def test_other_sites_send_nothing(local: WebClient, headers: dict[str, str], status: int) -> None:
    assert local.post("/api/answer", b"{}", **headers).status == status


def test_a_link_from_another_site_may_be_followed(local: WebClient) -> None:
    headers = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}
    assert local.get("/", **headers).status == 200
    assert local.get("/", **{**headers, "sec_fetch_mode": "no-cors"}).status == 403


@pytest.mark.parametrize(
    ("path", "length", "status"),
    [
        ("/api/images", str(MAX_BODY_BYTES), 200),
        ("/api/images", str(MAX_BODY_BYTES + 1), 413),
        ("/api/answer", str(MAX_JSON_BYTES), 200),
        ("/api/answer", str(MAX_JSON_BYTES + 1), 413),
        ("/api/answer", "9" * 5000, 413),
        ("/api/answer", "-1", 413),
        ("/api/answer", "١", 413),
    ],
)
def test_bodies_have_a_limit(local: WebClient, path: str, length: str, status: int) -> None:
    length = length.encode().decode("latin-1")
    assert local.post(path, b"", content_length=length).status == status


def test_a_body_without_its_size_is_refused(local: WebClient) -> None:
    assert local.post("/api/images", b"x", content_length="").status == 411
    assert local.post("/api/images", b"x", transfer_encoding="chunked").status == 411


def test_without_the_token_nothing_is_answered(public: WebClient) -> None:
    assert public.get("/").status == 403
    assert public.get("/?token=").status == 403
    assert public.get(f"/?token={TOKEN}x").status == 403
    assert public.get("/", cookie="sightline-8642=").status == 403
    assert public.get("/", cookie=f"other={TOKEN}").status == 403
    assert public.post(f"/api/images?token={TOKEN}", b"").status == 403
    assert public.get("/static/sightline.css").status == 403


def test_the_link_leads_to_the_page_with_a_cookie(public: WebClient) -> None:
    answer = public.get(f"/units/conv1/7.html?token={TOKEN}")
    assert answer.status == 303
    assert answer.headers["location"] == "7.html"
    cookie = answer.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=Lax", "Path=/"} <= set(cookie.split("; "))
    pair = cookie.split(";")[0]
    assert public.get("/units/conv1/7.html", cookie=f"x=y; {pair}").body == b"hello"
    assert public.get("/", host="any.example", cookie=pair).status == 200


@pytest.mark.parametrize("path", ["//evil.example/", "/javascript:alert(1)", "/x/http://evil/a:b"])
def test_the_redirect_stays_here(public: WebClient, path: str) -> None:
    location = public.get(f"{path}?token={TOKEN}").headers["location"]
    assert "evil.example" not in location
    assert ":" not in location
    assert not location.startswith("/")
