"""Codes of the shipped generator as the parameters of an ascent."""

import torch
from torch.nn import functional as F

from sightline.generators.architectures.decoder import load_code_generator
from sightline.generators.latent import GeneratorCode


def test_codes_start_at_the_mean_or_near_it() -> None:
    generator = load_code_generator()
    shared = GeneratorCode(generator, 2, 96)
    mean = generator.mean.clamp_min(0)
    assert torch.equal(shared.code.detach(), mean.expand(2, -1))

    spread = GeneratorCode(generator, 3, 96, seed=5, shared_start=False, deviation=0.25)
    noise = torch.randn(3, 256, generator=torch.Generator().manual_seed(5))
    expected = (generator.mean + 0.25 * generator.deviation * noise).clamp_min(0)
    torch.testing.assert_close(spread.code.detach(), expected)


def test_images_have_the_side_that_was_asked_for() -> None:
    generator = load_code_generator()
    code = GeneratorCode(generator, 2, 96, shared_start=False)
    images = code()
    assert torch.equal(images, generator(code.code))
    resized = GeneratorCode(generator, 2, 130, shared_start=False)()
    expected = F.interpolate(images, size=(130, 130), mode="bicubic").clamp(0, 1)
    torch.testing.assert_close(resized, expected)


def test_the_gradient_reaches_the_code() -> None:
    code = GeneratorCode(load_code_generator(), 1, 96)
    code()[..., :48, :].mean().backward()
    assert code.parameters == [code.code]
    assert code.code.grad is not None
    assert code.code.grad.abs().max() > 0


def test_decay_goes_a_share_of_the_way_to_the_mean() -> None:
    generator = load_code_generator()
    code = GeneratorCode(generator, 2, 96, shared_start=False)
    before = code.code.detach().clone()
    code.decay_to_mean_(0.2)
    expected = 0.8 * before + 0.2 * generator.mean
    torch.testing.assert_close(code.code.detach(), expected)


def test_projection_keeps_codes_between_0_and_3_deviations() -> None:
    generator = load_code_generator()
    code = GeneratorCode(generator, 1, 96)
    inside = (generator.mean + 2.9 * generator.deviation).clamp_min(0)
    with torch.no_grad():
        code.code.copy_(inside)
        code.code[0, 3] = -1
        code.code[0, 4] = 1000
    code.project_()
    expected = inside.clone()
    expected[0, 3] = 0
    expected[0, 4] = generator.mean[0, 4] + 3 * generator.deviation[0, 4]
    torch.testing.assert_close(code.code.detach(), expected)
