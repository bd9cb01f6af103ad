"""Two scans of the same images, by two small networks."""

from pathlib import Path

import pytest
from web_scan import make_two_scans

import sightline as sl
from sightline.methods.diagnosis.compare import Comparison, compare


@pytest.fixture(scope="session")
def two_scans(tmp_path_factory: pytest.TempPathFactory) -> tuple[sl.Scan, sl.Scan]:
    """Of 60 images in two classes; the second network has another last layer."""
    old, new, _ = make_two_scans(tmp_path_factory.mktemp("diagnosis"))
    return old, new


@pytest.fixture(scope="session")
def comparison(two_scans: tuple[sl.Scan, sl.Scan]) -> Comparison:
    return compare(*two_scans)


@pytest.fixture
def page_folder(tmp_path: Path) -> Path:
    return tmp_path / "page"
