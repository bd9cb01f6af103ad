"""The style network: its norm against torch's, its memory layout, sizes of images, and blends."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sightline.generators.architectures.style import (
    ConditionalInstanceNorm,
    Stylizer,
    make_stylizer,
)

ONE_STYLE = torch.ones(3, 1)


def make_network(style_count: int = 3, norm: Any = "conditional") -> Stylizer:
    """A tiny network whose rows differ from style to style."""
    network = make_stylizer(0, style_count, width=4, blocks=1, norm=norm).eval()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, ConditionalInstanceNorm):
                module.weight.add_(0.3 * torch.randn(module.weight.shape, generator=random))
                module.bias.add_(0.3 * torch.randn(module.bias.shape, generator=random))
    return network


def make_images(count: int = 2, height: int = 20, width: int = 26) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def make_features() -> Tensor:
    random = torch.Generator().manual_seed(0)
    return 3 * torch.randn(3, 5, 6, 7, generator=random) + 2


# ── norm ──


@pytest.mark.parametrize("with_gradient", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_norm_of_one_style_is_torchs_instance_norm(
    with_gradient: bool, layout: torch.memory_format
) -> None:
    norm = ConditionalInstanceNorm(5)
    reference = nn.InstanceNorm2d(5, affine=True)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-1, 2, 5)[None])
        norm.bias.copy_(torch.linspace(3, 1, 5)[None])
        reference.weight.copy_(norm.weight[0])
        reference.bias.copy_(norm.bias[0])
    x = make_features().contiguous(memory_format=layout)
    with torch.set_grad_enabled(with_gradient):
        torch.testing.assert_close(norm(x, ONE_STYLE), reference(x), rtol=1e-4, atol=1e-5)


def test_norm_has_torchs_gradient() -> None:
    norm = ConditionalInstanceNorm(5)
    reference = nn.InstanceNorm2d(5, affine=True)
    x = make_features().contiguous(memory_format=torch.channels_last)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    outputs = [norm(inputs[0], ONE_STYLE), reference(inputs[1])]
    gradients = torch.autograd.grad(outputs[0].pow(3).sum(), (inputs[0], norm.weight, norm.bias))
    expected = torch.autograd.grad(
        outputs[1].pow(3).sum(), (inputs[1], reference.weight, reference.bias)
    )
    for actual, gradient in zip(gradients, expected, strict=True):
        torch.testing.assert_close(actual.flatten(), gradient.flatten(), rtol=1e-3, atol=1e-3)
    assert gradients[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("with_gradient", [True, False])
def test_norm_keeps_channels_last(with_gradient: bool) -> None:
    x = make_features().contiguous(memory_format=torch.channels_last)
    with torch.set_grad_enabled(with_gradient):
        output = ConditionalInstanceNorm(5)(x, ONE_STYLE)
    assert output.is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def test_rows_are_blended_by_weight() -> None:
    norm = ConditionalInstanceNorm(5, 2)
    norm.weight.copy_(torch.tensor([[1.0] * 5, [3.0] * 5]))
    norm.bias.copy_(torch.tensor([[0.0] * 5, [8.0] * 5]))
    x = make_features()
    mix = torch.tensor([[0.75, 0.25], [1, 0], [0, 1]])
    output = norm(x, mix)
    normalized = nn.functional.instance_norm(x)
    for index, (scale, shift) in enumerate(((1.5, 2.0), (1.0, 0.0), (3.0, 8.0))):
        expected = normalized[index] * scale + shift
        torch.testing.assert_close(output[index], expected, rtol=1e-4, atol=1e-4)


# ── network ──


@torch.no_grad()
def test_conditional_norm_with_one_style_is_instance_norm() -> None:
    conditional = make_stylizer(0, 1, width=4, blocks=1, norm="conditional")
    instance = make_stylizer(0, 1, width=4, blocks=1, norm="instance")
    images, mix = make_images(), torch.ones(2, 1)
    assert torch.equal(conditional(images, mix), instance(images, mix))


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 30), (33, 18), (16, 64)])
def test_images_of_any_size_keep_it(height: int, width: int) -> None:
    mix = torch.tensor([[1.0, 0, 0]])
    output = make_network()(make_images(1, height, width), mix)
    assert output.shape == (1, 3, height, width)
    assert 0 <= output.min() <= output.max() <= 1


@torch.no_grad()
def test_sides_are_reflected_to_multiples_of_4() -> None:
    network, mix = make_network(), torch.tensor([[0.0, 1, 0]])
    image = make_images(1, 18, 31)
    padded = nn.functional.pad(image, (0, 1, 0, 2), mode="reflect")
    expected = network(padded, mix)[..., :18, :31]
    torch.testing.assert_close(network(image, mix), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_each_image_of_a_batch_has_its_own_style() -> None:
    network, images = make_network(), make_images()
    mix = torch.tensor([[1.0, 0, 0], [0, 0.5, 0.5]])
    output = network(images, mix)
    for index in range(2):
        expected = network(images[index : index + 1], mix[index : index + 1])
        torch.testing.assert_close(output[index : index + 1], expected, rtol=1e-4, atol=1e-5)
    assert (output[0] - network(images, mix.flip(0))[0]).abs().mean() > 1e-3
    one_hot = network.make_one_hot(torch.tensor([2, 0]))
    assert one_hot.tolist() == [[0, 0, 1], [1, 0, 0]]


def test_gradients_change_no_output() -> None:
    network, images = make_network(), make_images()
    mix = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    with torch.no_grad():
        expected = network(images, mix)
    output = network(images, mix).detach()
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_batch_norm_ignores_the_mix_and_depends_on_the_batch() -> None:
    network, images = make_network(1, "batch").train(), make_images()
    in_batch = network(images, torch.ones(2, 1))[:1]
    assert torch.equal(network(images, torch.zeros(2, 1))[:1], in_batch)
    alone = network(images[:1], torch.ones(1, 1))
    assert not torch.allclose(in_batch, alone, atol=1e-3)


def test_the_seed_alone_decides_the_weights() -> None:
    state_before = torch.get_rng_state()
    first, second, other = (
        make_stylizer(seed, width=4, blocks=1).state_dict() for seed in (3, 3, 4)
    )
    assert torch.equal(state_before, torch.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["last.conv.weight"], other["last.conv.weight"])
