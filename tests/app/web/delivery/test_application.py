"""The application: pages, the live API and its errors, and requests that nobody thought of."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from web_client import WebClient

import sightline as sl
from sightline.app.web.delivery import application as application_file
from sightline.app.web.delivery.application import make_application
from sightline.app.web.delivery.guard import RequestGuard
from sightline.app.web.delivery.live.network import LiveNetwork
from sightline.app.web.delivery.server import LOOPBACK_HOSTS
from sightline.app.web.explorer.explorer import Explorer
from sightline.data.store.reader import Scan


@pytest.fixture
def client(explorer: Explorer) -> Iterator[WebClient]:
    web_client = WebClient(RequestGuard(make_application(explorer), hosts=LOOPBACK_HOSTS))
    yield web_client
    web_client.close()


def test_files_have_tags_and_are_not_sent_twice(client: WebClient) -> None:
    answer = client.get("/static/sightline.css")
    assert answer.status == 200
    assert answer.headers["cache-control"] == "private, no-cache"
    again = client.get("/static/sightline.css", if_none_match=answer.headers["etag"])
    assert again.status == 304
    assert again.body == b""


def test_pictures_never_change(client: WebClient, explorer: Explorer) -> None:
    answer = client.get("/" + explorer.thumbnail(3))
    assert answer.body == explorer.scan.thumbnail_bytes([3])[0]
    assert answer.headers["cache-control"].endswith("immutable")
    assert answer.headers["content-type"] == "image/jpeg"


@pytest.mark.parametrize(
    "path",
    [
        "/none.html",
        "/static/..%2f..%2fpyproject.toml",
        "/static/%2e%2e/explorer/page.py",
        "/pictures/..%2f..%2f..%2fetc%2fpasswd",
        "/%00",
        "/units/conv1/%38",
        "/api/none",
        "/docs",
        "/redoc",
        "//etc/passwd",
        "/C:%5CWindows",
    ],
)
def test_other_paths_are_not_found(client: WebClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status == 404
    assert answer.json == {"error": "there is no such page"}


def test_an_image_is_sent_asked_about_and_never_written(
    client: WebClient, web_scan: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    sent = client.post("/api/images", Path(web_scan.paths[4]).read_bytes()).json
    assert (sent["height"], sent["width"], sent["size"]) == (40, 40, [32, 32])
    shown = client.get(f"/api/images/{sent['image']}.png")
    assert shown.headers["content-type"] == "image/png"
    answer = client.post_json("/api/answer", {"image": sent["image"], "attribution": "gradcam"})
    same = client.post_json("/api/answer", {"image": "s-4", "attribution": "gradcam"}).json
    assert answer.status == 200
    assert {**answer.json, "seconds": 0} == {**same, "seconds": 0}
    assert [path for path in tmp_path.rglob("*") if "pictures" not in path.parts] == []


@pytest.mark.parametrize(
    ("content", "status", "reason"),
    [
        ({}, 422, "image: Field required"),
        ({"image": "../etc/passwd"}, 422, "image: "),
        ({"image": "s-99"}, 400, "id is 99; it must lie between 0 and 13"),
        ({"image": "s-1", "unknown": 1}, 422, "unknown: "),
        ({"image": "s-1", "cover": [[1, 2, 3]]}, 422, "cover.0.3: "),
        ({"image": "s-1", "units": 0}, 422, "units: "),
        ({"image": "s-1", "attribution": "lime"}, 422, "attribution: "),
        ({"image": "s-1", "layer": "<script>"}, 400, "no layer"),
        ([], 422, ""),
    ],
)
def test_bad_requests_are_one_line(
    client: WebClient, content: Any, status: int, reason: str
) -> None:
    answer = client.post_json("/api/answer", content)
    assert answer.status == status
    error = answer.json["error"]
    assert error.startswith(reason)
    assert "\n" not in error
    assert answer.headers["content-type"] == "application/json"


def test_what_is_no_picture(client: WebClient) -> None:
    answer = client.post("/api/images", b"<script>alert(1)</script>")
    assert answer.status == 400
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_json_that_is_none(client: WebClient) -> None:
    for body in (b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"image": NaN}'):
        answer = client.post("/api/answer", body, content_type="application/json")
        assert 400 <= answer.status < 500
        assert answer.json["error"]


def test_too_many_requests_wait(
    client: WebClient, monkeypatch: pytest.MonkeyPatch, explorer: Explorer
) -> None:
    gate = threading.Event()
    answer = LiveNetwork.answer

    def answer_slowly(self: LiveNetwork, request: Any) -> Any:
        assert gate.wait(30)
        return answer(self, request)

    monkeypatch.setattr(LiveNetwork, "answer", answer_slowly)
    headers = {"content-type": "application/json"}

    async def send_many() -> list[int]:
        tasks = [
            asyncio.ensure_future(client.send("POST", "/api/answer", headers, b'{"image": "s-1"}'))
            for _ in range(7)
        ]
        while sum(task.done() for task in tasks) < 3:
            await asyncio.sleep(0.01)
        gate.set()
        answers = await asyncio.gather(*tasks)
        refused = [each for each in answers if each.status == 429]
        assert all(each.headers["retry-after"] == "1" for each in refused)
        return [each.status for each in answers]

    assert sorted(client.loop.run_until_complete(send_many())) == [200] * 4 + [429] * 3


def test_without_the_network_only_the_live_tab_is_missing(web_scan: Scan) -> None:
    client = WebClient(make_application(Explorer(web_scan, None, is_served=True)))
    assert client.get("/api/state").status == 503
    assert client.post("/api/images", b"x").status == 503
    assert client.get("/static/sightline.css").status == 200
    client.close()


def test_an_error_of_ours_is_reported_as_one(
    client: WebClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(application_file, "read_site_file", fail)
    with pytest.raises(ZeroDivisionError):
        client.get("/index.html")
    assert "GET /index.html failed" in caplog.text


@pytest.mark.filterwarnings("ignore")
def test_requests_by_the_description_of_the_api(web_scan: Scan, web_model: sl.Model) -> None:
    """A few dozen requests made up from the OpenAPI description; none may be an error of ours."""
    client = WebClient(make_application(Explorer(web_scan, web_model, is_served=True)))
    description = client.get("/api/openapi.json").json
    schema = schemathesis.openapi.from_dict(description)
    statuses: set[int] = set()

    from hypothesis import HealthCheck, Phase, given, settings

    for result in schema.get_all_operations():
        operation = result.ok()

        @given(case=operation.as_strategy())
        @settings(
            max_examples=12,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def send_case(case: Any) -> None:
            answer = send_prepared(client, case)
            statuses.add(answer.status)
            assert answer.status < 500, (case.method, case.path, answer.body)
            assert str(answer.status) in case.operation.definition.raw["responses"]

        send_case()
    assert {200, 400} <= statuses
    client.close()


def send_prepared(client: WebClient, case: Any) -> Any:
    """Sends a case of schemathesis as the request that it would make."""
    import requests

    arguments = case.as_transport_kwargs(base_url="http://127.0.0.1:8642")
    arguments = {
        k: v
        for k, v in arguments.items()
        if k in ("method", "url", "headers", "params", "data", "json", "cookies")
    }
    prepared = requests.Request(**arguments).prepare()
    body = prepared.body or b""
    content = body.encode() if isinstance(body, str) else body
    headers = {k.lower(): str(v) for k, v in prepared.headers.items() if k.lower() != "host"}
    if prepared.method == "GET":
        headers.pop("content-length", None)
    sending = client.send(prepared.method or "GET", prepared.path_url, headers, content)
    return client.loop.run_until_complete(sending)
