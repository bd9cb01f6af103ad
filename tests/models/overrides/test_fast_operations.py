"""Fast operations of torch are used where they are right, and done without where they are not."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, get_args

import pytest
import torch
from helpers import needs_fast_operations, needs_onednn
from torch import Tensor, nn
from torch.nn import functional as F

import sightline as sl
from sightline.models.overrides import fast_operations, max_pooling
from sightline.models.overrides.fast_operations import FastOperation, is_available
from sightline.models.overrides.onednn import use_packed_weights
from sightline.models.overrides.unsaved_inputs import UnsavedInputsMode

OPERATIONS: tuple[FastOperation, ...] = get_args(FastOperation)

# What the packed convolution, the pooling and the ReLU rule give, printed as numbers.
SCRIPT = """
import torch, sightline as sl
from sightline.models.overrides import max_pooling
max_pooling.MIN_COMPACT_POOL_ELEMENTS = 1
torch.set_num_threads(1)
torch.manual_seed(0)
network = torch.nn.Sequential(
    torch.nn.Conv2d(3, 6, 7, 2, 3), torch.nn.BatchNorm2d(6), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
    torch.nn.Conv2d(6, 5, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(5 * 8 * 10, 4),
)
model = sl.load(network, size=40, device="cpu")
image = torch.rand(2, 3, 40, 48, generator=torch.Generator().manual_seed(1)).requires_grad_()
for rule in ("gradient", "guided"):
    with sl.backward(rule):
        logits = model.run(image, ["logits"])["logits"]
    print(*logits.flatten().tolist())
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), image)
    print(*gradient.flatten().tolist())
logits = model.run(image, ["logits"])["logits"]
(gradient,) = torch.autograd.grad(logits[:, 1].sum(), image)
print(*gradient.flatten().tolist())
"""


@pytest.fixture(autouse=True)
def forget_probes() -> Iterator[None]:
    """Every operation is probed anew."""
    is_available.cache_clear()
    yield
    is_available.cache_clear()


class Namespace:
    """A namespace of torch's operations, some of them replaced; None stands for a missing one."""

    def __init__(self, namespace: Any, **replacements: Any) -> None:
        self.namespace = namespace
        self.replacements = replacements

    def __getattr__(self, name: str) -> Any:
        operation = self.replacements.get(name, getattr(self.namespace, name))
        if operation is None:
            raise AttributeError(f"no operation {name}")
        return operation


class Overload:
    """An operation whose default overload is a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.default = function


def convolve(x: Tensor, weight: Tensor, padding: int = 1) -> Tensor:
    with use_packed_weights():
        return F.conv2d(x, weight, None, 1, padding)


@needs_onednn
@pytest.mark.parametrize("operation", OPERATIONS)
def test_torch_has_every_operation(operation: FastOperation) -> None:
    assert is_available(operation)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_one_variable_turns_all_off(
    operation: FastOperation, portable: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger=fast_operations.__name__):
        assert not is_available(operation)
    assert caplog.messages == [f"{operation}: turned off by SIGHTLINE_PORTABLE=1"]


@needs_onednn
@pytest.mark.parametrize(
    "name",
    [
        "_reorder_convolution_weight",
        "_convolution_pointwise",
        "_reorder_convolution_transpose_weight",
        "_convolution_transpose_pointwise",
    ],
)
def test_without_an_operation_of_onednn_torch_convolves(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.ops, "mkldnn", Namespace(torch.ops.mkldnn, **{name: None}))
    weight = nn.Parameter(torch.randn(4, 3, 3, 3), requires_grad=False)
    x = torch.randn(2, 3, 7, 9)
    with caplog.at_level(logging.DEBUG, logger=fast_operations.__name__):
        output = convolve(x, weight)
    assert torch.equal(output, F.conv2d(x, weight, None, 1, 1))
    assert any(
        message.startswith("packed convolution: this torch has no such operation (no operation")
        for message in caplog.messages
    )


@needs_onednn
def test_an_operation_that_computes_something_else_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    right = torch.ops.mkldnn._convolution_pointwise.default
    doubled = Overload(lambda *args: right(*args) * 2)
    namespace = Namespace(torch.ops.mkldnn, _convolution_pointwise=doubled)
    monkeypatch.setattr(torch.ops, "mkldnn", namespace)
    weight = nn.Parameter(torch.randn(4, 3, 3, 3), requires_grad=False)
    x = torch.randn(2, 3, 7, 9)
    with caplog.at_level(logging.DEBUG, logger=fast_operations.__name__):
        output = convolve(x, weight)
    assert torch.equal(output, F.conv2d(x, weight, None, 1, 1))
    assert "packed convolution: this torch's operation computes something else" in caplog.messages


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        ("threshold backward", "threshold_backward"),
        ("max pooling backward", "max_pool2d_with_indices_backward"),
    ],
)
@pytest.mark.parametrize("broken", [None, lambda gradient, *_: torch.zeros_like(gradient)])
def test_a_backward_operation_that_is_missing_or_wrong_is_not_used(
    operation: FastOperation,
    name: str,
    broken: Callable[..., Tensor] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    namespace = Namespace(torch.ops.aten, **{name: broken})
    monkeypatch.setattr(fast_operations, "aten", namespace)
    assert not is_available(operation)


def test_without_the_counts_of_modes_only_public_operations_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)
    assert not is_available("mode counts")
    with use_packed_weights() as mode:
        assert isinstance(mode, UnsavedInputsMode)


@needs_fast_operations
def test_what_is_active_at_the_first_use_does_not_decide() -> None:
    with torch.device("meta"), torch.inference_mode():
        assert all(is_available(operation) for operation in OPERATIONS[1:])
    is_available.cache_clear()
    with sl.backward("guided") as rule:
        assert is_available("max pooling backward")
    assert rule.count == 0


def test_results_are_the_same_in_a_process_without_fast_operations(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The script sets it; afterwards it is as before.
    monkeypatch.setattr(max_pooling, "MIN_COMPACT_POOL_ELEMENTS", 1)
    monkeypatch.delenv("SIGHTLINE_PORTABLE", raising=False)
    with torch.random.fork_rng():
        exec(SCRIPT, {})
    fast = parse_numbers(capsys.readouterr().out)
    completed = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "SIGHTLINE_PORTABLE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    portable = parse_numbers(completed.stdout)
    assert fast.numel() == 2 * (2 * 4) + 3 * (2 * 3 * 40 * 48)
    torch.testing.assert_close(fast, portable, rtol=1e-4, atol=1e-6)


def parse_numbers(output: str) -> Tensor:
    """The numbers that a script printed."""
    return torch.tensor([float(word) for word in output.split()])
