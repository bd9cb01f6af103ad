"""Immutable values and data sets are told from what a network may change."""

import logging
from collections import UserList, deque
from enum import Enum
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from sightline.models.network.copying.values import is_dataset, is_immutable


class Color(Enum):
    RED = 1


class Named(str):
    pass


@pytest.mark.parametrize(
    "value",
    [None, 1, 1.5, "a", b"a", range(3), int, nn, Color.RED, torch.float32, torch.Size([2])],
    ids=lambda value: type(value).__name__,
)
def test_immutable_values(value: object) -> None:
    assert is_immutable(value)


@pytest.mark.parametrize(
    "value",
    [[], {}, (), Named("a"), torch.ones(1), nn.ReLU(), np.ones(1), lambda: 0],
    ids=lambda value: type(value).__name__,
)
def test_values_that_may_hold_others(value: object) -> None:
    assert not is_immutable(value)
    assert not is_immutable(object())
    assert is_immutable(logging.getLogger("x"))


class Readable:
    def __getitem__(self, index: int) -> int:
        return index

    def __len__(self) -> int:
        return 3


class Writable(Readable):
    def append(self, value: int) -> None:
        pass


class Stream(Dataset[int]):
    pass


def test_data_sets() -> None:
    dataset = TensorDataset(torch.ones(3))
    for value in (dataset, DataLoader(dataset), Stream(), Readable()):
        assert is_dataset(value)


def test_containers_are_no_data_sets() -> None:
    values: list[Any] = [[1], (1,), {1: 2}, {1}, deque([1]), UserList([1]), bytearray(2)]
    values += [np.ones(2), torch.ones(2), nn.Sequential(nn.ReLU()), Writable(), object()]
    for value in values:
        assert not is_dataset(value)
