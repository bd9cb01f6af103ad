"""A browser, and the site of the small scan: served, and as files.

The browser is Chromium as the system has it. Without one these tests are skipped, and say so.
"""

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from web_scan import make_two_scans, make_web_model, make_web_scan

from sightline.app.web.delivery.export import SiteExport
from sightline.app.web.delivery.server import make_server, open_server_address
from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.pictures.cache import PictureCache
from sightline.data.store.reader import Scan
from sightline.models.model import Model

BROWSER_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--use-fake-device-for-media-stream"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window.

    It runs an event loop in this thread, so it goes before the tests of another file, which may
    have their own.
    """
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    paths = [path for name in BROWSER_NAMES if (path := shutil.which(name))]
    if not paths:
        pytest.skip(f"no browser: none of {', '.join(BROWSER_NAMES)} is installed")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=paths[0], args=FLAGS)
        yield chromium
        chromium.close()


@dataclass(frozen=True)
class Site:
    """The same site twice: `served` and `files` are the addresses of its root."""

    served: str
    files: str
    explorer: Explorer
    picture: Path  # a file to send


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The site of the small scan, while it is served."""
    folder = tmp_path_factory.mktemp("site")
    model = make_web_model()
    with publish_site(make_web_scan(model, folder), model, folder) as published:
        yield published


@pytest.fixture(scope="session")
def diagnosed_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The site of a network that is compared with an earlier one, with its mistakes."""
    folder = tmp_path_factory.mktemp("diagnosed")
    old, new, model = make_two_scans(folder)
    with publish_site(new, model, folder, compared_scan=old, has_mistakes=True) as published:
        yield published


@contextmanager
def publish_site(scan: Scan, model: Model, folder: Path, **settings: Any) -> Iterator[Site]:
    """The site of a scan as files, and served while the block runs."""
    pictures = PictureCache(folder / "pictures")
    exported = Explorer(scan, model, pictures=pictures, command="sightline export", **settings)
    assert SiteExport(exported, folder / "site").run(lambda *_: False)
    served = Explorer(
        scan, model, pictures=pictures, is_served=True, command="sightline explore", **settings
    )
    address = open_server_address(port=0)
    server = make_server(served, address)
    thread = threading.Thread(target=server.run, args=([address.listener],), daemon=True)
    thread.start()
    files = f"{(folder / 'site').as_uri()}/"
    yield Site(address.link, files, served, Path(scan.paths[0]))
    server.should_exit = True
    thread.join(20)
    address.listener.close()


@dataclass
class WatchedPage:
    """A page of the browser, and what went wrong in it."""

    page: Any
    problems: list[str] = field(default_factory=list[str])

    def open(self, address: str) -> Any:
        """Opens an address and waits until everything is loaded."""
        self.page.goto(address, wait_until="load")
        return self.page

    def check(self) -> None:
        """Fails if the console has an error, a file is missing, or a dialog was opened."""
        assert self.problems == []


OpenBrowserPage = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any) -> OpenBrowserPage:
    """Makes a context manager with a page of a width and colour scheme, which is checked."""

    @contextmanager
    def open_watched(width: int = 1280, scheme: str = "light", **settings: Any) -> Iterator[Any]:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, **settings
        )
        watched = WatchedPage(context.new_page())
        page = watched.page

        def note_message(message: Any) -> None:
            if message.type in ("error", "warning"):
                watched.problems.append(f"console: {message.text}")

        def note_dialog(dialog: Any) -> None:
            watched.problems.append(f"dialog: {dialog.message}")
            dialog.dismiss()

        def note_answer(answer: Any) -> None:
            if answer.status >= 400:
                watched.problems.append(f"{answer.status} {answer.url}")

        def note_failure(asked: Any) -> None:
            # What is not there yet when one goes on to another page is aborted.
            if asked.failure != "net::ERR_ABORTED":
                watched.problems.append(f"failed: {asked.url} ({asked.failure})")

        page.on("console", note_message)
        page.on("dialog", note_dialog)
        page.on("pageerror", lambda error: watched.problems.append(f"error: {error}"))
        page.on("response", note_answer)
        page.on("requestfailed", note_failure)
        yield watched
        context.close()
        watched.check()

    return open_watched
