"""Attention's weights are told from maps by their values."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from zoo.odd_ways import PlainTransformer

import sightline as sl
from sightline.models.layers.attention_matrices import (
    drop_attention_matrices,
    find_parent,
    is_attention_matrix,
)
from sightline.models.layers.capture import Layer

SCORES = torch.randn(2, 3, 7, 7, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rows_of_weights_sum_to_one(dtype: torch.dtype) -> None:
    weights = SCORES.to(dtype).softmax(3)
    assert is_attention_matrix(weights)
    assert is_attention_matrix(weights[:, :, :2])  # of some tokens to others
    assert not is_attention_matrix(weights.transpose(2, 3))


@pytest.mark.parametrize(
    "output",
    [
        SCORES,
        SCORES.relu(),
        SCORES.softmax(1),
        SCORES.softmax(3)[0],
        torch.ones(2, 3, 7, 1),
        torch.eye(7, dtype=torch.long).expand(2, 3, 7, 7),
        SCORES - SCORES.mean(3, keepdim=True) + 1 / 7,  # sums to 1, with negative numbers
    ],
)
def test_other_outputs_are_no_weights(output: Tensor) -> None:
    assert not is_attention_matrix(output)


class WrittenOut(nn.Module):
    """Attention among 16 patches whose weights are the output of a module."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv2d(3, 8, 8, stride=8)
        self.drop = nn.Dropout()
        self.head = nn.Linear(8, 4)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.embed(image).flatten(2).transpose(1, 2)[:, None]
        weights = self.drop((tokens @ tokens.transpose(2, 3)).softmax(3))
        return self.head((weights @ tokens)[:, 0].mean(1))


def test_weights_that_are_asked_for_as_a_map_are_refused(tmp_path: Path) -> None:
    model = sl.load(WrittenOut().eval(), size=32)
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    sl.write(image[:1], tmp_path / "image.png")
    for run in (
        lambda: sl.gradcam(model, image, layer="drop"),
        lambda: sl.cam(model, image, layer="drop", kind="eigencam"),
        lambda: sl.activations(model, image, layers=("drop",)),
        lambda: sl.scan(model, tmp_path, layers=("drop",), store=tmp_path / "store"),
    ):
        with pytest.raises(sl.SightlineError, match="drop gives the weights of an attention"):
            run()
    assert sl.gradcam(model, image, layer="embed").values["cam"].shape == (2, 4, 4)


def make_layer(name: str, output: Tensor) -> Layer:
    return Layer(name, "Kind", tuple(output.shape[1:]))


def test_scores_before_the_softmax_go_with_the_weights_of_their_module() -> None:
    outputs = {
        "block.attn/add": SCORES,
        "block.attn.drop": SCORES.softmax(3),
        "block.attn.drop:in": SCORES.softmax(3),
        "block.attn.other": SCORES[:, :2],
        "other.conv": SCORES,
    }
    layers = [make_layer(name, output) for name, output in outputs.items() if ":" not in name]
    layers.append(make_layer("unknown", SCORES))
    remaining = drop_attention_matrices(outputs, layers)
    assert [layer.name for layer in remaining] == ["block.attn.other", "other.conv", "unknown"]


def test_the_module_that_a_layer_belongs_to() -> None:
    names = ("a.b.c", "a.b/relu", "a.b/relu:2", "a.b:1", "conv", "/add")
    assert [find_parent(name) for name in names] == ["a.b", "a.b", "a.b", "a", "", ""]


def test_the_last_map_of_a_transformer_is_no_attention() -> None:
    torch.manual_seed(0)
    model = sl.load(PlainTransformer().eval(), size=32)
    assert tuple(model.layers["blocks.1.drop"].shape) == (2, 17, 17)
    assert model.landmarks["last_conv"] == "blocks.1.norm"
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert sl.gradcam(model, image).values["cam"].shape == (1, 4, 4)
