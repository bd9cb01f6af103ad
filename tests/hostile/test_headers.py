"""Headers of style networks with anything in any place: a network that works, or one line."""

import copy
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

import sightline as sl
from sightline.generators.architectures.style import make_stylizer
from sightline.generators.checkpoint import (
    AnyStyleNetwork,
    FixedStyleNetwork,
    hash_tensors,
    read_style_network,
)

# Values of every kind, among them those that ask for much.
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 70),
    st.sampled_from([2**31, 2**63, 10**18, -(10**9)]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=8),
    st.sampled_from(
        ["sightline-any-style", "instance", "batch", "os:system", "x" * 5000, "\x1b[2J"]
    ),
    st.lists(st.text(max_size=3), max_size=4),
    st.dictionaries(
        st.sampled_from(["model", "options", "weights", "url"]), st.text(max_size=5), max_size=3
    ),
)
KEYS = ("kind", "styles", "width", "blocks", "norm", "sha256", "encoder", "step", "")


@dataclass(frozen=True, repr=False)  # hypothesis shows what a test is given
class Valid:
    """A place for files, a header, and the weights that it describes."""

    path: Path
    header: dict[str, Any]
    state: dict[str, Tensor]


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Valid:
    torch.manual_seed(0)
    network = make_stylizer(0, 2, width=4, blocks=1, norm="conditional")
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    header = {
        "kind": "sightline-stylizer",
        "styles": ["wave", "night"],
        "width": 4,
        "blocks": 1,
        "norm": "conditional",
        "sha256": hash_tensors(state),
    }
    return Valid(tmp_path_factory.mktemp("headers") / "network.safetensors", header, state)


def read_header(valid: Valid, header_json: str) -> str:
    """Reads a network with this header: what its one line says, or nothing where it works."""
    save_file(valid.state, valid.path, {"sightline": header_json})
    try:
        network = read_style_network(valid.path)
    except sl.SightlineError as error:
        return str(error)
    if isinstance(network, AnyStyleNetwork):
        return ""
    assert isinstance(network, FixedStyleNetwork)
    with torch.no_grad():
        made = network.network(torch.rand(1, 3, 32, 32), network.make_mix(network.names[0]))
    assert made.shape == (1, 3, 32, 32)
    return ""


def test_the_header_itself_is_read(valid: Valid) -> None:
    assert read_header(valid, json.dumps(valid.header)) == ""


@settings(max_examples=80, deadline=None)
@given(
    changes=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3),
    left_out=st.sets(st.sampled_from(KEYS), max_size=1),
)
def test_any_header_is_a_network_or_one_line(
    valid: Valid, changes: dict[str, Any], left_out: set[str]
) -> None:
    header = {**copy.deepcopy(valid.header), **changes}
    message = read_header(
        valid, json.dumps({key: value for key, value in header.items() if key not in left_out})
    )
    assert message.isprintable()
    if message:
        assert "network.safetensors" in message
        assert len(message) < 1000


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=30), place=st.floats(0, 1))
def test_any_text_in_a_header_is_a_network_or_one_line(
    valid: Valid, text: str, place: float
) -> None:
    whole = json.dumps(valid.header)
    start = math.floor(place * len(whole))
    try:
        message = read_header(valid, f"{whole[:start]}{text}{whole[start + len(text) :]}")
    except UnicodeEncodeError:  # what the test itself can't write
        return
    assert message.isprintable()
