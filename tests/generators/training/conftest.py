"""Lightning Fabric on the processor."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def make_fabric() -> Callable[..., Any]:
    """Makes a launched Fabric of one process; with a strategy, one that is not launched yet."""
    pytest.importorskip("lightning_fabric")
    pytest.importorskip("tensorboard")
    from lightning_fabric import Fabric

    def make(**options: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fabric = Fabric(**{"accelerator": "cpu", "devices": 1, **options})
            if "strategy" not in options:
                fabric.launch()
        return fabric

    return make
