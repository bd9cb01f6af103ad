"""The embedded network's structure, and that its weights know its classes."""

import pytest
import torch
from torch import nn

import sightline as sl
from sightline.models.zoo.sightnet import SIGHTNET_LABELS, SIGHTNET_WIDTHS, make_sightnet


def test_the_shapes_of_the_blocks() -> None:
    """Every block halves the side: a convolution with stride 2, and three poolings."""
    model = sl.Model(make_sightnet(), size=160)
    sides = {"1": 80, "2": 40, "3": 20, "4": 10, "5": 10}
    for name, width in SIGHTNET_WIDTHS.items():
        side = sides[name[4]]
        assert model.shape(name) == (width, side, side)
        assert model.shape(name.replace("conv", "relu")) == (width, side, side)
    assert [name for name in model.layers if name.startswith("pool")] == ["pool1", "pool2", "pool3"]
    assert model.shape("gap") == (256, 1, 1)
    assert model.shape("logits") == (10,)


def test_batch_norms_fold_into_the_plain_network() -> None:
    """y = w·x and (y - mean)·gain + shift is the convolution with weight w·gain."""
    torch.manual_seed(0)
    trained = make_sightnet(classes=4, batch_norm=True).eval()
    plain = make_sightnet(classes=4).eval()
    state = trained.state_dict()
    folded = {key: state[key] for key in plain.state_dict() if key in state}
    for name in SIGHTNET_WIDTHS:
        norm = trained.get_submodule(name.replace("conv", "bn"))
        assert isinstance(norm, nn.BatchNorm2d)
        for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            assert value is not None
            nn.init.uniform_(value, 0.5, 1.5)
        gain = norm.weight / (norm.running_var + norm.eps).sqrt()
        folded[f"{name}.weight"] = state[f"{name}.weight"] * gain.view(-1, 1, 1, 1)
        folded[f"{name}.bias"] = norm.bias - norm.running_mean * gain
    plain.load_state_dict(folded)
    image = torch.rand(2, 3, 48, 64)
    torch.testing.assert_close(plain(image), trained(image), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("label", ["golf ball", "church"])
def test_labels_are_those_of_imagenette(label: str) -> None:
    assert label in SIGHTNET_LABELS
    assert sl.load(device="cpu").labels == SIGHTNET_LABELS
