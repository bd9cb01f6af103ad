"""Edits act on the right call, whatever its output is, and are gone when they are removed."""

from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.models.layers.edits import (
    CallEdits,
    edit_step_output,
    find_call_edits,
    replace_first_tensor,
)
from sightline.models.layers.functional_steps import edit_functional_steps
from sightline.models.network.copy import copy_network

INPUT = torch.arange(12.0).view(2, 6)


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class Twice(nn.Module):
    """One module called twice, by position and by name, with a functional step between."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.step(x)
        x = F.relu(x - 4)
        return self.step(input=x) + 100


def add_one(tensor: Tensor) -> Tensor:
    return tensor + 1


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        (CallEdits({("step", 0): add_one}), F.relu(INPUT + 1 - 4) + 100),
        (CallEdits({("step", 1): add_one}), F.relu(INPUT - 4) + 1 + 100),
        (CallEdits({}, {("step", 0): add_one}), F.relu(INPUT + 1 - 4) + 100),
        (CallEdits({}, {("step", 1): add_one}), F.relu(INPUT - 4) + 1 + 100),
        (CallEdits({("/relu", 0): add_one}), F.relu(INPUT - 4) + 1 + 100),
    ],
)
def test_each_call_has_edits_of_its_own(edits: CallEdits, expected: Tensor) -> None:
    network = Twice()
    handles = edits.attach(network)
    for _ in range(2):  # every pass counts its calls from the start
        with edit_functional_steps(network):
            assert torch.equal(network(INPUT), expected)
    copied = copy_network(network, share_parameters=True)
    with edit_functional_steps(copied):
        assert torch.equal(copied(INPUT), expected)
    for handle in handles:
        handle.remove()
    assert find_call_edits(network) == []
    with edit_functional_steps(network):
        assert torch.equal(network(INPUT), F.relu(INPUT - 4) + 100)


def test_several_edits_are_made_in_their_order() -> None:
    network = Twice()
    first = CallEdits({("/relu", 0): add_one})
    second = CallEdits({("/relu", 0): lambda tensor: 2 * tensor})
    first.attach(network)
    second.attach(network)
    assert find_call_edits(network) == [first, second]
    with edit_functional_steps(network):
        assert torch.equal(network(INPUT), 2 * (F.relu(INPUT - 4) + 1) + 100)
    first(network, ())
    second(network, ())
    assert torch.equal(edit_step_output([first, second], "/relu", INPUT), 2 * (INPUT + 1))


def test_the_first_tensor_of_any_output_is_edited() -> None:
    other = torch.ones(3)
    assert torch.equal(replace_first_tensor(INPUT, add_one), INPUT + 1)
    pair = replace_first_tensor(Pair(INPUT, other), add_one)
    assert isinstance(pair, Pair)
    assert torch.equal(pair.first, INPUT + 1)
    assert pair.second is other
    listed = replace_first_tensor([None, INPUT, other], add_one)
    assert listed[0] is None
    assert torch.equal(listed[1], INPUT + 1)
    given = OrderedDict(loss=None, logits=INPUT, hidden=other)
    edited = replace_first_tensor(given, add_one)
    assert type(edited) is OrderedDict
    assert torch.equal(edited["logits"], INPUT + 1)
    assert given["logits"] is INPUT
    assert replace_first_tensor("text", add_one) == "text"
