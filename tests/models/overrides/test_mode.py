"""Overrides replace functions until they are suspended, each thread for itself."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from sightline.models.overrides.average_pooling import AveragePoolingMode
from sightline.models.overrides.mode import ObservingMode, OverrideMode, suspend_overrides
from sightline.models.overrides.padding import BorderPaddingMode
from sightline.models.overrides.relu import backward


class RecordingMode(OverrideMode):
    """Notes the functions that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.functions: list[Any] = []

    def run_function(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.functions.append(func)
        return func(*args, **kwargs)


X = torch.arange(24.0).view(1, 2, 3, 4)


def test_every_call_of_a_function_goes_through_the_mode() -> None:
    with RecordingMode() as mode:
        output = F.avg_pool2d(X, 2, stride=1)
        torch.add(X, 1)
    assert mode.functions == [F.avg_pool2d, torch.add]
    assert torch.equal(output, F.avg_pool2d(X, 2, stride=1))


def test_suspended_overrides_replace_nothing() -> None:
    with AveragePoolingMode(), BorderPaddingMode("circular"), backward("guided") as rule:
        with suspend_overrides():
            with suspend_overrides():
                pass
            pooled = F.max_pool2d(X, 2, 2, 1)
            F.relu(X)
        assert rule.count == 0
        assert not torch.equal(F.max_pool2d(X, 2, 2, 1), pooled)
    assert torch.equal(pooled, F.max_pool2d(X, 2, 2, 1))


def test_an_observer_inside_a_suspension_is_active() -> None:
    class Observer(ObservingMode):
        def __init__(self) -> None:
            super().__init__()
            self.functions: list[Any] = []

        def run_function(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            self.functions.append(func)
            return func(*args, **kwargs)

    with Observer() as outer, suspend_overrides():
        with Observer() as inner:
            torch.add(X, 1)
            with suspend_overrides():
                torch.sub(X, 1)
        torch.mul(X, 2)
    assert outer.functions == []
    assert inner.functions == [torch.add]


def test_overrides_come_back_after_an_error() -> None:
    with RecordingMode() as mode:
        with pytest.raises(ZeroDivisionError), suspend_overrides():
            raise ZeroDivisionError
        torch.add(X, 1)
    assert mode.functions == [torch.add]


def test_another_thread_is_not_suspended() -> None:
    def count_rectifiers() -> int:
        with backward("guided") as rule:
            F.relu(X)
        return rule.count

    with ThreadPoolExecutor(1) as pool, suspend_overrides():
        assert pool.submit(count_rectifiers).result() == 1
        assert count_rectifiers() == 0
