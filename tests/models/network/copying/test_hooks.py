"""Hooks have names in messages, and a wrapper's run around those of the module inside."""

import functools
from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from sightline.models.network.copying.hooks import add_wrapper_hooks, describe_hook


class Recorder:
    def __call__(self, *_: Any) -> None:
        pass

    def record(self, *_: Any) -> None:
        pass


def test_names_of_hooks() -> None:
    def watch(*_: Any) -> None:
        pass

    assert describe_hook(watch) == "watch"
    assert describe_hook(lambda: 0) == "<lambda>"
    assert describe_hook(functools.partial(functools.partial(watch, 1), 2)) == "watch"
    assert describe_hook(Recorder()) == "Recorder"
    assert describe_hook(Recorder().record) == "Recorder.record"


def test_hooks_of_a_wrapper_run_first_before_and_last_after() -> None:
    calls: list[str] = []
    module = nn.Identity()
    module.register_forward_pre_hook(lambda _m, _a: calls.append("module before"))
    module.register_forward_hook(lambda _m, _a, _o: calls.append("module after"))
    hooks: dict[str, OrderedDict[int, Any]] = {
        "_forward_pre_hooks": OrderedDict(
            {
                -1: lambda _m, _a: calls.append("first before"),
                -2: lambda _m, _a: calls.append("second before"),
            }
        ),
        "_forward_hooks": OrderedDict({-3: lambda _m, _a, _k, _o: calls.append("after")}),
        "_forward_hooks_with_kwargs": OrderedDict({-3: True}),
    }
    add_wrapper_hooks(module, hooks)
    module(torch.ones(1))
    assert calls == ["first before", "second before", "module before", "module after", "after"]
