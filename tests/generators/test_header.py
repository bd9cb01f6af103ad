"""Headers of style networks by themselves; `test_checkpoint.py` has those that are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import sightline as sl
from sightline.generators.header import (
    AnyStyleHeader,
    FixedStyleHeader,
    check_names,
    read_header_json,
    read_network_header,
)

FIXED = {
    "kind": "sightline-stylizer",
    "styles": ["wave", "night"],
    "width": 8,
    "blocks": 0,
    "norm": "conditional",
}
ANY = {"kind": "sightline-any-style", "encoder": {"model": "sightnet"}}


def write_header(path: Path, header: Any) -> Path:
    save_file({"weight": torch.ones(2)}, path, {"sightline": json.dumps(header)})
    return path


def test_a_header_is_read_with_what_else_it_says(tmp_path: Path) -> None:
    path = write_header(tmp_path / "a.safetensors", {**FIXED, "step": 7, "sha256": "ab"})
    header = read_network_header(path)
    assert isinstance(header, FixedStyleHeader)
    assert (header.styles, header.width, header.blocks) == (["wave", "night"], 8, 0)
    assert (header.norm, header.sha256) == ("conditional", "ab")
    assert header.model_extra == {"step": 7}


def test_the_kind_tells_which_header_it_is(tmp_path: Path) -> None:
    header = read_network_header(write_header(tmp_path / "a.safetensors", ANY))
    assert isinstance(header, AnyStyleHeader)
    assert header.encoder == {"model": "sightnet"}
    assert header.sha256 is None


@pytest.mark.parametrize("digest", [3, ["ab"], True])
def test_a_digest_that_is_no_text_is_refused(digest: Any, tmp_path: Path) -> None:
    path = write_header(tmp_path / "a.safetensors", {**FIXED, "sha256": digest})
    with pytest.raises(sl.SightlineError, match="'sha256' in its header"):
        read_network_header(path)


def test_files_without_a_header_have_none(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "a.safetensors")
    assert read_header_json(tmp_path / "a.safetensors") == "null"
    assert read_header_json(tmp_path / "absent.pt") == "null"


def test_names_are_of_one_style_each() -> None:
    assert check_names(["a", "b", "A"]) == ["a", "b", "A"]
    with pytest.raises(ValueError, match="3 styles are named 'b'"):
        check_names(["a", "b", "b", "b"])
