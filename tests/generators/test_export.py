"""ONNX files: the same images come out, for any number and size."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import smooth

import sightline as sl
from sightline.generators.architectures.adain import AdaINStylizer
from sightline.generators.architectures.style import make_stylizer
from sightline.generators.checkpoint import AnyStyleNetwork, FixedStyleNetwork
from sightline.generators.export import export_onnx, truncate_network

SIZES = ((1, 48, 48), (2, 37, 60))


@pytest.fixture
def runtime() -> Any:
    pytest.importorskip("onnxscript")
    return pytest.importorskip("onnxruntime")


def open_session(runtime: Any, path: Path) -> Any:
    return runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_fixed_styles_give_the_same_images(runtime: Any, tmp_path: Path) -> None:
    network = FixedStyleNetwork(make_stylizer(0, 2, width=4, blocks=1), ("wave", "night"))
    inputs = export_onnx(network, tmp_path / "fixed.onnx")
    assert inputs == "image N×3×H×W in [0, 1], mix N×2 (wave, night)"
    session = open_session(runtime, tmp_path / "fixed.onnx")
    assert session.get_modelmeta().custom_metadata_map == {"styles": "wave,night"}
    for count, height, width in SIZES:
        image = torch.rand(count, 3, height, width)
        mix = torch.rand(count, 2)
        with torch.no_grad():
            expected = network.network(image, mix)
        output = session.run(None, {"image": image.numpy(), "mix": mix.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(output), expected, rtol=0, atol=1e-4)


def test_any_style_gives_the_same_images(runtime: Any, tmp_path: Path) -> None:
    network = AnyStyleNetwork(AdaINStylizer(sl.load()).eval())
    inputs = export_onnx(network, tmp_path / "any.onnx")
    assert inputs == "image N×3×H×W and style N×3×h×w in [0, 1], alpha N"
    session = open_session(runtime, tmp_path / "any.onnx")
    for count, height, width in SIZES:
        image = torch.rand(count, 3, height, width)
        style = torch.rand(count, 3, 50, 41)
        alpha = torch.linspace(0.5, 1, count)
        with torch.no_grad():
            expected = network.network(image, network.network.make_style_row(style, alpha))
        arrays = {"image": image.numpy(), "style": style.numpy(), "alpha": alpha.numpy()}
        output = session.run(None, arrays)[0]
        torch.testing.assert_close(torch.from_numpy(output), expected, rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["squeezenet1_0", "vgg16"])
def test_the_first_layers_alone_give_the_features(name: str) -> None:
    network = AdaINStylizer(sl.load(name, weights="random"))
    image = smooth(side=70)[..., :61]
    encoder = truncate_network(network.model.network, network.deepest_layer)
    features = encoder(network.model.normalize(image))
    torch.testing.assert_close(features, network.encode_image(image), rtol=1e-4, atol=1e-5)
