"""The preprocessing of an image processor, beside what the processor itself does."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sightline.models.model import Model
from sightline.models.zoo.libraries.hugging_face_settings import (
    find_hugging_face_settings,
    read_config_labels,
    read_image_processor,
    read_size,
)

transformers = pytest.importorskip("transformers")

PROCESSORS = {
    "ViTImageProcessor": {"size": {"height": 24, "width": 40}},
    "CLIPImageProcessor": {
        "size": {"shortest_edge": 40},
        "crop_size": {"height": 24, "width": 24},
    },
    "ViTImageProcessor without normalization": {
        "do_normalize": False,
        "size": {"height": 24, "width": 24},
    },
    "ViTImageProcessor without rescaling": {
        "do_rescale": False,
        "image_mean": [120.0] * 3,
        "image_std": [60.0] * 3,
        "size": {"height": 24, "width": 24},
    },
    "MobileViTImageProcessor": {
        "size": {"shortest_edge": 30},
        "crop_size": {"height": 24, "width": 24},
    },
}


@pytest.mark.parametrize("case", PROCESSORS)
def test_normalization_is_the_processors(case: str) -> None:
    processor = getattr(transformers, case.partition(" ")[0])(**PROCESSORS[case])
    settings = read_image_processor(processor, nn.ReLU())
    model = Model(nn.Conv2d(3, 2, 3), **settings)
    height, width = model.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    # Both sides of the size are there already, so that nothing is resized.
    only_values = {
        "do_resize": False,
        "do_center_crop": False,
        "input_data_format": "channels_last",
    }
    processed = processor(pixels, return_tensors="pt", **only_values)["pixel_values"].float()
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    torch.testing.assert_close(model.normalize(image), processed, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "arguments", "size", "resize"),
    [
        ("ViTImageProcessor", {"size": {"height": 24, "width": 40}}, (24, 40), None),
        (
            "CLIPImageProcessor",
            {"size": {"shortest_edge": 40}, "crop_size": {"height": 24, "width": 32}},
            (24, 32),
            40,
        ),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 32}, "crop_pct": 0.5}, 32, 64),
        (
            "DetrImageProcessor",
            {"size": {"shortest_edge": 96, "longest_edge": 160}},
            96,
            None,
        ),
    ],
)
def test_size_and_crop(name: str, arguments: dict[str, Any], size: Any, resize: Any) -> None:
    settings = read_image_processor(getattr(transformers, name)(**arguments), nn.ReLU())
    assert settings.get("size") == size
    assert settings.get("resize") == resize


def test_processors_of_timm_and_scales_of_minus_1_to_1() -> None:
    config = {"mean": (0.5,) * 3, "std": (0.2,) * 3, "input_size": (3, 20, 20), "crop_pct": 0.5}
    settings = read_image_processor(SimpleNamespace(data_config=config), nn.ReLU())
    assert (settings.get("size"), settings.get("resize")) == (20, 40)
    signed = SimpleNamespace(
        do_rescale=True,
        rescale_factor=1 / 127.5,
        rescale_offset=True,
        do_normalize=False,
    )
    settings = read_image_processor(signed, nn.ReLU())
    model = Model(nn.Conv2d(3, 2, 3), **settings)
    values = model.normalize(torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1))
    torch.testing.assert_close(values.flatten(), torch.tensor([-1.0, 0.0, 1.0]))


def test_labels_of_a_configuration() -> None:
    assert read_config_labels({1: "b", 0: "a"}) == ("a", "b")
    assert read_config_labels({0: "LABEL_0", 1: "LABEL_1"}) == ()
    assert read_config_labels({0: "a", 2: "c"}) == ()
    assert read_config_labels(None) == ()


@pytest.mark.parametrize(
    ("value", "size"),
    [(24, 24), ([24, 40], (24, 40)), ((32, 32), 32), (None, None), ("24", None), ((0, 8), None)],
)
def test_sizes(value: Any, size: Any) -> None:
    assert read_size(value) == size


def test_other_modules_tell_nothing() -> None:
    assert find_hugging_face_settings(nn.Conv2d(3, 4, 3)) == {}
