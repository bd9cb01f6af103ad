"""Files in place of weights: each is refused in one line, in bounded memory and time."""

import fractions
import json
import os
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sightline.errors import SightlineError
from sightline.models.weights.checkpoint import fill_network_weights, read_weights
from sightline.models.weights.file_content import read_file_content


def write_safetensors(path: Path, header: dict[str, Any], data: bytes, length: int = 0) -> None:
    """A safetensors file with this header, which may claim another length."""
    text = json.dumps(header).encode()
    path.write_bytes((length or len(text)).to_bytes(8, "little") + text + data)


def expect_refusal(path: Path, message: str) -> None:
    with pytest.raises(SightlineError, match=message) as refused:
        read_weights(path)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


# ── no weights at all ──

OTHER_CONTENTS = {
    "nothing.pt": (b"", "neither a torch nor a safetensors file: it is empty$"),
    "page.pth": (b"\n <!DOCTYPE HTML><p>Sign in", "it is a web page, which came in place of"),
    "list.safetensors": (b'<?xml version="1.0"?><Error/>', "is not a whole safetensors file"),
    "pointer.ckpt": (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS"),
    "keras.pt": (b"\x89HDF\r\n\x1a\n" + bytes(50), "an HDF5 file, as Keras writes them"),
    "text.pt": (b"epoch,loss\n1,0.5\n", "is neither a torch nor a safetensors file$"),
}


@pytest.mark.parametrize("name", OTHER_CONTENTS)
def test_other_content_is_named(tmp_path: Path, name: str) -> None:
    content, message = OTHER_CONTENTS[name]
    (tmp_path / name).write_bytes(content)
    expect_refusal(tmp_path / name, f"^{name} .*{message}")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    expect_refusal(tmp_path, "no weights file .* it is a folder$")
    save_file({"w": torch.ones(2)}, tmp_path / "inner.safetensors")
    expect_refusal(tmp_path, r"it is a folder; did you mean .*inner\.safetensors\?$")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    expect_refusal(tmp_path / "pipe.pt", "it is a pipe, a socket or a device")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("sightline.models.weights.file_content.os.stat", refuse)
    expect_refusal(tmp_path / "secret.pt", r"the weights file .*secret\.pt may not be read by this")


@pytest.mark.parametrize("name", ["a\0b.pt", "x" * 5000])
def test_names_that_no_file_can_have(name: str) -> None:
    with pytest.raises(SightlineError, match=r"^no weights file"):
        read_weights(Path(name))


def test_the_content_counts_and_not_the_suffix(tmp_path: Path) -> None:
    save_file({"w": torch.full((2,), 3.0)}, tmp_path / "named.pth")
    assert read_weights(tmp_path / "named.pth")["w"].tolist() == [3.0, 3.0]
    torch.save({"w": torch.full((2,), 4.0)}, tmp_path / "named.safetensors")
    assert read_weights(tmp_path / "named.safetensors")["w"].tolist() == [4.0, 4.0]


# ── safetensors ──

TENSOR = {"dtype": "F32", "shape": [2]}
HEADERS: dict[str, tuple[dict[str, Any], int]] = {
    "overlapping": (
        {"a": {**TENSOR, "data_offsets": [0, 8]}, "b": {**TENSOR, "data_offsets": [4, 12]}},
        0,
    ),
    "beyond the end": ({"a": {**TENSOR, "data_offsets": [0, 8_000_000]}}, 0),
    "endless header": ({"a": {**TENSOR, "data_offsets": [0, 8]}}, 3_000_000_000),
    "unknown type": ({"a": {**TENSOR, "dtype": "F3", "data_offsets": [0, 8]}}, 0),
    "huge shape": ({"a": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 8]}}, 0),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_safetensors_with_impossible_headers(tmp_path: Path, kind: str) -> None:
    header, length = HEADERS[kind]
    write_safetensors(tmp_path / "odd.safetensors", header, bytes(12), length)
    expect_refusal(tmp_path / "odd.safetensors", r"odd\.safetensors is not a whole safetensors")


# ── torch ──


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (np.float32(0.25), r"numpy\.\w+\.multiarray\.scalar"),
        (types.SimpleNamespace(lr=0.1), r"types\.SimpleNamespace"),
        (fractions.Fraction(1, 3), r"fractions\.Fraction"),
    ],
    ids=["number of numpy", "namespace", "fraction"],
)
def test_what_is_refused_is_named_with_the_way_out(tmp_path: Path, value: Any, name: str) -> None:
    torch.save({"state_dict": {"w": torch.ones(2)}, "best": value}, tmp_path / "run.ckpt")
    expect_refusal(
        tmp_path / "run.ckpt",
        rf"no code from a weights file is run \({name}\); write the weights alone: torch\.save",
    )


def test_an_archive_that_unpacks_to_much_more_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(20_000_000))
    assert path.stat().st_size < 100_000
    expect_refusal(path, "is refused: it would unpack to 20 MB from 0.0 MB; torch.save compresses")


def test_weights_that_were_packed_again_are_read(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {"w": torch.randn(4000, generator=generator)}
    torch.save(weights, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for member in plain.namelist():
            packed.writestr(member, plain.read(member))
    assert torch.equal(read_weights(tmp_path / "packed.pt")["w"], weights["w"])


@pytest.mark.parametrize("module", [b"builtins", b"__builtin__"])
@pytest.mark.parametrize("form", ["archive", "old"])
def test_no_pickle_asks_for_memory_of_any_size(tmp_path: Path, form: str, module: bytes) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "greedy.pt", _use_new_zipfile_serialization=False)
    request = b"\x80\x02c" + module + b"\nbytearray\nJ\xff\xff\xff\x7f\x85R."
    if form == "old":
        content = (tmp_path / "greedy.pt").read_bytes()
        (tmp_path / "greedy.pt").write_bytes(content + request)
    else:
        with zipfile.ZipFile(tmp_path / "greedy.pt", "w") as archive:
            archive.writestr("greedy/data.pkl", request)
    expect_refusal(
        tmp_path / "greedy.pt", r"holds more than tensors \(builtins\.bytearray\); write"
    )


def test_files_of_old_torch_are_read(tmp_path: Path) -> None:
    weights = {"w": torch.arange(5.0)}
    torch.save(weights, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(read_weights(tmp_path / "old.pt")["w"], weights["w"])


@pytest.mark.parametrize("member", ["net/constants.pkl", "net/archive_format"])
def test_programs_are_no_weights(tmp_path: Path, member: str) -> None:
    with zipfile.ZipFile(tmp_path / "net.pt", "w") as archive:
        archive.writestr("net/data.pkl", b"\x80\x02}.")
        archive.writestr(member, b"")
    expect_refusal(tmp_path / "net.pt", "it holds a scripted or exported program; write the weigh")


def test_an_archive_cut_off(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(500)}, tmp_path / "cut.pt")
    content = (tmp_path / "cut.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: len(content) * 3 // 4])
    expect_refusal(tmp_path / "cut.pt", "is not a whole torch file")


# ── tensors that are no plain arrays ──

ODD_TENSORS: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "meta": (lambda: torch.empty(4, 5, device="meta"), "has no values"),
    "sparse": (lambda: torch.eye(4).to_sparse(), "is sparse or nested"),
    "rows": (lambda: torch.eye(4).to_sparse_csr(), "is sparse or nested"),
    "complex": (lambda: torch.ones(3, dtype=torch.complex64), r"is complex \(torch.complex64"),
    "eight bits": (lambda: torch.ones(3).to(torch.float8_e5m2), "has the type torch.float8_e5m2"),
    "quantized": (
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.5, 0, torch.quint8),
        "is quantized",
    ),
    "expanded": (lambda: torch.ones(1).expand(10**11), "has fewer numbers than its shape says"),
    "repeated": (lambda: torch.ones(1, 3).expand(7, 3), "has fewer numbers than its shape says"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ODD_TENSORS)
def test_tensors_that_are_no_arrays(tmp_path: Path, kind: str) -> None:
    make_tensor, message = ODD_TENSORS[kind]
    torch.save({"model": {"w": torch.ones(2), "odd": make_tensor()}}, tmp_path / "odd.pt")
    expect_refusal(tmp_path / "odd.pt", rf"^odd\.pt is refused: odd {message}")


def test_integers_are_no_weights(tmp_path: Path) -> None:
    network = nn.BatchNorm2d(3)
    state = network.state_dict()
    state["weight"] = torch.tensor([1, 2, 3], dtype=torch.int8)
    with pytest.raises(SightlineError, match=r"weight holds numbers of the type torch.int8, and"):
        fill_network_weights(network, state, tmp_path / "x.pt", "norm")
    assert network.weight.tolist() == [1, 1, 1]


def test_a_state_dict_that_holds_itself(tmp_path: Path) -> None:
    outer: dict[str, Any] = {"epoch": 3}
    inner: dict[str, Any] = {"net": outer, "w": torch.ones(2)}
    outer["state_dict"] = inner
    torch.save(outer, tmp_path / "circle.pt")
    expect_refusal(tmp_path / "circle.pt", "holds no weights by name")


def test_keys_that_are_no_names(tmp_path: Path) -> None:
    torch.save({7: torch.ones(2), (1, 2): torch.ones(2)}, tmp_path / "numbers.pt")
    expect_refusal(tmp_path / "numbers.pt", "holds no weights by name")
    assert set(read_file_content(tmp_path / "numbers.pt")) == {7, (1, 2)}


def test_long_and_odd_names_are_shown_short(tmp_path: Path) -> None:
    name = "x\n" * 100_000
    with pytest.raises(SightlineError) as refused:
        fill_network_weights(nn.ReLU(), {name: torch.ones(1)}, tmp_path / "x.pt", "relu")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400
