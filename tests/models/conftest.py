"""Torch's fast operations as they are here, and as if this torch had none."""

from collections.abc import Iterator

import pytest

from sightline.models.overrides.fast_operations import is_available


@pytest.fixture
def portable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No fast operation of torch is available."""
    monkeypatch.setenv("SIGHTLINE_PORTABLE", "1")
    is_available.cache_clear()
    yield
    is_available.cache_clear()


@pytest.fixture(params=["fast", "portable"])
def fast_or_portable(request: pytest.FixtureRequest) -> str:
    """Runs a test twice: with torch's fast operations, and with its public ones only."""
    if request.param == "portable":
        request.getfixturevalue("portable")
    return request.param
