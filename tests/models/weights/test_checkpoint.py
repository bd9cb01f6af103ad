"""Weights files: what is read of them, and what is refused."""

import hashlib
import pickle
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from sightline.errors import SightlineError
from sightline.models.weights.checkpoint import fill_network_weights, hash_file, read_weights
from sightline.models.zoo.load import load

squeezenet = partial(load, "squeezenet1_0", device="cpu")


@pytest.fixture(scope="module")
def squeezenet_state() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return models.squeezenet1_0().state_dict()


NO_FORMAT = "neither a torch nor a safetensors file"
BAD_FILES = {
    "pickle_with_code.pt": "refused: it holds more than tensors, and no code from a weights file",
    "truncated.safetensors": "is not a whole safetensors file",
    "wrong_shapes.safetensors": (
        r"features\.0\.weight is \(5, 3, 3, 3\) in the file, \(96, 3, 7, 7\) in the network, "
        "and 51 more"
    ),
    "nan_weights.safetensors": r"features\.3\.squeeze\.weight is missing, and 49 more",
    "empty.png": NO_FORMAT,
    "text.jpg": NO_FORMAT,
    "html.png": NO_FORMAT,
    "rgba.png": NO_FORMAT,
    "animated.gif": NO_FORMAT,
    "no_suffix": NO_FORMAT,
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_refused_in_one_line(data: Path, name: str) -> None:
    proof = Path(tempfile.gettempdir()) / "sightline_pickle_was_run"
    proof.unlink(missing_ok=True)
    with pytest.raises(SightlineError, match=f"^{name} .*{BAD_FILES[name]}") as caught:
        squeezenet(weights=data / "badinputs" / name)
    assert "\n" not in str(caught.value)
    assert not proof.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "was_run",)

    for protocol in (2, 4):
        (tmp_path / "weights.pt").write_bytes(pickle.dumps({"features.0.weight": Code()}, protocol))
        with pytest.raises(SightlineError, match=r"^weights\.pt is refused"):
            squeezenet(weights=tmp_path / "weights.pt")
    torch.save({"state_dict": Code()}, tmp_path / "zipped.pth")
    with pytest.raises(SightlineError, match=r"^zipped\.pth is refused"):
        squeezenet(weights=tmp_path / "zipped.pth")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(SightlineError, match=r"^module\.pth is refused"):
        squeezenet(weights=tmp_path / "module.pth")
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("name", ["cut.pt", "cut.safetensors"])
def test_cut_files(
    tmp_path: Path, squeezenet_state: dict[str, Tensor], name: str, share: float
) -> None:
    path = tmp_path / name
    if name.endswith("safetensors"):
        save_file(squeezenet_state, path)
    else:
        torch.save(squeezenet_state, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(SightlineError, match=r"^cut\.\w+ is (not a whole|neither)") as caught:
        squeezenet(weights=path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", range(5))
def test_garbage_after_the_first_byte_of_a_pickle(tmp_path: Path, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 256, (200,), generator=generator, dtype=torch.uint8)
    (tmp_path / "noise.pt").write_bytes(b"\x80\x02" + bytes(noise.tolist()))
    with pytest.raises(SightlineError, match=r"^noise\.pt is"):
        squeezenet(weights=tmp_path / "noise.pt")


def test_files_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").touch()
    with pytest.raises(
        SightlineError,
        match=r"no weights file .*wieghts\.safetensors; did you mean weights\.safetensors\?",
    ):
        squeezenet(weights=tmp_path / "wieghts.safetensors")
    with pytest.raises(SightlineError, match="no weights file"):
        squeezenet(weights=tmp_path / "nowhere" / "weights.safetensors")
    with pytest.raises(SightlineError, match="no weights file"):
        squeezenet(weights=tmp_path)


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}, {"state_dict": {}}, torch.zeros(3)])
def test_files_without_weights_by_name(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(
        SightlineError, match=r"other\.pt holds no weights by name; a state dict is expected"
    ):
        squeezenet(weights=tmp_path / "other.pt")


WRAPPED = {
    "plain": lambda state: state,
    "lightning": lambda state: {
        "epoch": 3,
        "state_dict": {f"model.{key}": value for key, value in state.items()},
    },
    "parallel": lambda state: {
        "state_dict": {f"module.{key}": value for key, value in state.items()}
    },
    "compiled": lambda state: {
        "model": {f"_orig_mod.{key}": value for key, value in state.items()}
    },
    "both": lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
    "other way": lambda state: {f"_orig_mod.module.{key}": value for key, value in state.items()},
    "three": lambda state: {f"model._orig_mod.module.{key}": value for key, value in state.items()},
    "nested": lambda state: {"model_state_dict": {"net": state}, "optimizer": {"lr": 0.1}},
    "half": lambda state: {key: value.half() for key, value in state.items()},
    "double": lambda state: {key: value.double() for key, value in state.items()},
}


@pytest.mark.parametrize("wrapping", WRAPPED)
def test_usual_wrappings_are_looked_through(
    tmp_path: Path, squeezenet_state: dict[str, Tensor], wrapping: str
) -> None:
    torch.save(WRAPPED[wrapping](squeezenet_state), tmp_path / "wrapped.pt")
    model = squeezenet(weights=tmp_path / "wrapped.pt")
    rtol, atol = (1e-3, 1e-6) if wrapping == "half" else (0, 0)
    for key, value in model.network.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, squeezenet_state[key], rtol=rtol, atol=atol)
    digest = hashlib.sha256((tmp_path / "wrapped.pt").read_bytes()).hexdigest()
    assert model.recipe["sha256"] == hash_file(tmp_path / "wrapped.pt") == digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"features.3.squeeze.bias": None},
            r"doesn't fit squeezenet1_0: features\.3\.squeeze\.bias is missing",
        ),
        (
            {"extra": torch.zeros(1), "more": torch.zeros(1)},
            r"doesn't fit squeezenet1_0: the network has no extra, and 1 more",
        ),
        (
            {"features.0.bias": torch.zeros(5)},
            r"features\.0\.bias is \(5,\) in the file, \(96,\) in the network",
        ),
        (
            {"features.0.bias": torch.zeros(5), "features.0.weight": None, "extra": torch.zeros(1)},
            r"features\.0\.bias is \(5,\) in the file, \(96,\) in the network, and 2 more",
        ),
        (
            {"features.0.bias": torch.full((96,), float("nan"))},
            r"is refused: features\.0\.bias holds NaN or infinite weights",
        ),
        (
            {"features.0.bias": torch.full((96,), float("inf"))},
            r"is refused: features\.0\.bias holds NaN or infinite weights",
        ),
    ],
)
def test_names_that_do_not_fit(
    tmp_path: Path,
    squeezenet_state: dict[str, Tensor],
    change: dict[str, Tensor | None],
    message: str,
) -> None:
    changed = {**squeezenet_state, **change}
    state = {key: value for key, value in changed.items() if value is not None}
    save_file(state, tmp_path / "state.safetensors")
    with pytest.raises(SightlineError, match=f"^state.safetensors .*{message}$"):
        squeezenet(weights=tmp_path / "state.safetensors")


def test_files_without_batch_counts_fit(tmp_path: Path) -> None:
    norm = nn.BatchNorm2d(3)
    state = {"weight": torch.tensor([1.0, 2.0, 3.0]), "bias": torch.tensor([4.0, 5.0, 6.0])}
    statistics = {"running_mean": torch.ones(3), "running_var": torch.full((3,), 2.0)}
    fill_network_weights(norm, {**state, **statistics}, tmp_path / "a.pt", "norm")
    assert torch.equal(norm.weight, state["weight"])
    with pytest.raises(SightlineError, match=r"^a\.pt doesn't fit norm: running_mean is missing, "):
        fill_network_weights(norm, state, tmp_path / "a.pt", "norm")


def test_a_round_trip_through_both_formats(
    tmp_path: Path, squeezenet_state: dict[str, Tensor]
) -> None:
    save_file(squeezenet_state, tmp_path / "a.safetensors")
    torch.save(squeezenet_state, tmp_path / "a.pt")
    torch.save(squeezenet_state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for path in sorted(tmp_path.iterdir()):
        state = read_weights(path)
        assert state.keys() == squeezenet_state.keys()
        assert all(torch.equal(state[key], value) for key, value in squeezenet_state.items())
    network = models.squeezenet1_0()
    fill_network_weights(network, squeezenet_state, tmp_path / "a.pt", "squeezenet1_0")
    for key, value in network.state_dict().items():
        assert torch.equal(value, squeezenet_state[key])


@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod.model."])
def test_a_network_may_have_a_wrappers_name_itself(tmp_path: Path, wrapper: str) -> None:
    """Its parameters are all below an attribute `model`."""

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))

    trained = Outer()
    state = {wrapper + key: value for key, value in trained.state_dict().items()}
    torch.save(state, tmp_path / "outer.pt")
    network = Outer()
    fill_network_weights(
        network, read_weights(tmp_path / "outer.pt"), tmp_path / "outer.pt", "Outer"
    )
    for key, value in trained.state_dict().items():
        assert torch.equal(network.state_dict()[key], value)
