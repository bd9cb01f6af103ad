"""The small scan, its network, and the explorer of both."""

from pathlib import Path

import pytest
from web_scan import make_web_model, make_web_scan

import sightline as sl
from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.pictures.cache import PictureCache
from sightline.data.store.reader import Scan


@pytest.fixture(scope="session")
def web_model() -> sl.Model:
    """The small network."""
    return make_web_model()


@pytest.fixture(scope="session")
def web_scan(web_model: sl.Model, tmp_path_factory: pytest.TempPathFactory) -> Scan:
    """The small scan."""
    return make_web_scan(web_model, tmp_path_factory.mktemp("web"))


@pytest.fixture
def pictures(tmp_path: Path) -> PictureCache:
    """A cache of its own."""
    return PictureCache(tmp_path / "pictures")


@pytest.fixture
def explorer(web_scan: Scan, web_model: sl.Model, pictures: PictureCache) -> Explorer:
    """The explorer of the scan, as a server has it."""
    return Explorer(web_scan, web_model, pictures=pictures, is_served=True, command="sightline")
