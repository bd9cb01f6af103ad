"""Torch's fast operations as they are here, and as if this torch had none."""

import pytest


@pytest.fixture(params=["fast", "portable"])
def fast_or_portable(request: pytest.FixtureRequest) -> str:
    """Runs a test twice: with torch's fast operations, and with its public ones only."""
    if request.param == "portable":
        request.getfixturevalue("portable")
    return request.param
