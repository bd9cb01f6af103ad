"""Odd networks against plain torch: scores, their gradient, Grad-CAM and occlusion."""

from functools import cache

import pytest
import torch
from torch import Tensor, nn
from zoo.odd_answers import ODD_ANSWERS, OddModel
from zoo.odd_insides import ODD_INSIDES
from zoo.odd_ways import ODD_WAYS
from zoo.odd_wrappings import ODD_WRAPPINGS

import sightline as sl

ODD_MODELS: dict[str, OddModel] = {**ODD_ANSWERS, **ODD_INSIDES, **ODD_WAYS, **ODD_WRAPPINGS}
LABEL = 1
SIDE = 32

# Their last layer with positions has its channels last.
CHANNELS_LAST = {"permuted", "plain_transformer"}

# No module or functional step gives their maps.
WITHOUT_MAPS = {"hidden", "exported", "stacked", "reads_memory"}


@cache
def load(name: str) -> tuple[nn.Module, sl.Model]:
    entry = ODD_MODELS[name]
    torch.manual_seed(0)
    network = entry.build()
    if name != "exported":
        network.eval()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return network, sl.load(network, size=SIDE, mean=[0.4] * 3, std=[0.3] * 3, **entry.options)


def make_images(count: int) -> Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))


def score_plainly(name: str, images: Tensor) -> Tensor:
    return ODD_MODELS[name].oracle(load(name)[0], (images - 0.4) / 0.3)


@pytest.mark.parametrize("name", ODD_MODELS)
def test_scores_and_what_they_mean(name: str) -> None:
    _, model = load(name)
    images = make_images(3)
    assert model.output_kind == ODD_MODELS[name].kind
    for batch in (images, images[:1]):
        torch.testing.assert_close(
            model.logits(batch).detach(), score_plainly(name, batch), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("name", ODD_MODELS)
def test_the_gradient_is_that_of_autograd(name: str) -> None:
    _, model = load(name)
    images = make_images(2).requires_grad_()
    (expected,) = torch.autograd.grad(score_plainly(name, images)[:, LABEL].sum(), images)
    # A gradient that is zero in truth is rounding alone, which differs.
    assert expected.abs().max() > 1e-5
    result = sl.saliency(model, images.detach(), label=LABEL, kind="gradient")
    scale = float(expected.abs().max())
    torch.testing.assert_close(
        result.values["gradient"] / scale, expected / scale, rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("name", ODD_MODELS)
def test_occlusion_is_that_of_covered_images(name: str) -> None:
    _, model = load(name)
    image = make_images(1)
    result = sl.occlusion(model, image, label=LABEL, window=16, stride=16)
    with torch.no_grad():
        clean = score_plainly(name, image)[0, LABEL]
        drops: list[Tensor] = []
        for row in (0, 16):
            for column in (0, 16):
                covered = image.clone()
                covered[:, :, row : row + 16, column : column + 16] = 0.5
                drops.append(clean - score_plainly(name, covered)[0, LABEL])
    expected = torch.stack(drops).view(1, 2, 2)
    torch.testing.assert_close(result.values["drop"], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", sorted(set(ODD_MODELS) - WITHOUT_MAPS))
def test_grad_cam_is_that_of_its_layer(name: str) -> None:
    network, model = load(name)
    image = make_images(1)
    layer = model.layer("last_conv")
    result = sl.gradcam(model, image, label=LABEL)
    assert result.values["attribution"].isfinite().all()
    if "/" in layer or ":" in layer or layer not in dict(network.named_modules()):
        return  # a step has no module to hook
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    handle = network.get_submodule(layer).register_forward_hook(keep)
    try:
        score_plainly(name, image.clone().requires_grad_())[0, LABEL].backward()
    finally:
        handle.remove()
    maps = kept[-1]
    if name in CHANNELS_LAST:
        return
    weights = maps.grad.mean((2, 3), keepdim=True)  # type: ignore[union-attr]
    expected = (weights * maps).sum(1).relu().detach()
    torch.testing.assert_close(result.values["cam"], expected, rtol=1e-3, atol=1e-5)
