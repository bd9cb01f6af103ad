"""What modules of timm bring along: mean, std, size and crop."""

import pytest
import timm
import torch
from torch import nn

import sightline as sl
from sightline.models.zoo.libraries.timm_networks import find_timm_settings, read_timm_config


def test_a_module_of_timm_brings_its_own_preprocessing() -> None:
    network = timm.create_model("deit3_small_patch16_224", depth=1, embed_dim=24, num_heads=2)
    network.pretrained_cfg["mean"] = (0.1, 0.2, 0.3)
    network.pretrained_cfg["std"] = (0.5, 0.6, 0.7)
    model = sl.load(network)
    assert model.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert model.std.flatten().tolist() == pytest.approx([0.5, 0.6, 0.7])
    assert model.image_size == (224, 224)
    assert model.resize == round(224 / network.pretrained_cfg["crop_pct"])


def test_the_callers_own_preprocessing_counts_more() -> None:
    network = timm.create_model("resnet10t", num_classes=4)
    model = sl.load(network, mean=[0.5] * 3, size=(64, 96))
    assert model.mean.flatten().tolist() == [0.5] * 3
    assert model.std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])
    assert model.image_size == (64, 96)
    doubled = sl.load(network, preprocess=lambda image: image * 2)
    assert torch.equal(doubled.normalize(torch.ones(1, 3, 8, 8)), torch.full((1, 3, 8, 8), 2.0))


def test_wrappers_are_looked_through() -> None:
    network = nn.DataParallel(timm.create_model("resnet10t", num_classes=4))
    assert sl.load(network).size == 176


@pytest.mark.parametrize(("channels", "mean"), [(1, 0.449), (5, 0.449)])
def test_networks_of_other_channels_have_the_average_for_each(channels: int, mean: float) -> None:
    model = sl.load("resnet10t", weights="random", in_chans=channels, device="cpu")
    assert model.mean.flatten().tolist() == pytest.approx([mean] * channels, abs=1e-3)
    assert model.logits(torch.rand(2, model.channels, 32, 40)).shape == (2, 1000)


def test_the_size_is_that_of_the_position_embedding() -> None:
    with torch.device("meta"):
        network = timm.create_model("vit_tiny_patch16_224", img_size=(64, 96), depth=1)
    assert find_timm_settings(network).get("size") == (64, 96)


def test_pixels_folded_into_channels_stay_three_colors() -> None:
    with torch.device("meta"):
        network = timm.create_model("tresnet_m")
    assert len(find_timm_settings(network).get("mean", ())) == 3


def test_other_networks_tell_nothing() -> None:
    assert find_timm_settings(nn.Conv2d(3, 4, 3)) == {}
    config = {"mean": (0.5,), "std": (0.25,), "input_size": (1, 28, 40), "crop_pct": 0.5}
    assert read_timm_config(config, nn.ReLU()) == {
        "mean": (0.5,),
        "std": (0.25,),
        "size": (28, 40),
        "resize": 56,
    }
