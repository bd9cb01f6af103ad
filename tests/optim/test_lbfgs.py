"""L-BFGS against torch's, step by step, and against the definition."""

import pytest
import torch
from torch import Tensor

from sightline.optim.lbfgs import LBFGS


def valley_loss(x: Tensor) -> Tensor:
    """A curved valley (Rosenbrock): N numbers of N×D."""
    bend = x[:, 1:] - x[:, :-1].square()
    return (bend.square() * 3 + (1 - x[:, :-1]).square()).sum(1)


def make_start(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(count, 12, dtype=torch.float64, generator=generator) * 0.5


def make_step(optimizer: LBFGS | torch.optim.Optimizer, x: Tensor) -> Tensor:
    """One step down the valley, whether the optimizer takes a closure or not."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = valley_loss(x).sum()
        loss.backward()
        return loss

    if isinstance(optimizer, LBFGS):
        closure()
        optimizer.step()
    else:
        optimizer.step(closure)  # type: ignore[arg-type]
    return x.detach().clone()


@pytest.mark.parametrize("history", [1, 3, 10])
@pytest.mark.parametrize("lr", [1.0, 0.5])
def test_steps_are_torchs(history: int, lr: float) -> None:
    x = make_start(1).requires_grad_()
    torch_x = make_start(1).requires_grad_()
    optimizer = LBFGS([x], lr=lr, history=history)
    torch_optimizer = torch.optim.LBFGS([torch_x], lr=lr, max_iter=1, history_size=history)
    for _ in range(25):
        start = torch_x.detach().clone()
        step = make_step(optimizer, x) - start
        torch_step = make_step(torch_optimizer, torch_x) - start
        torch.testing.assert_close(step, torch_step, rtol=1e-5, atol=1e-9)
    assert valley_loss(x).item() < 0.5 * valley_loss(make_start(1)).item()


def test_images_of_a_batch_are_independent() -> None:
    batch = make_start(3).requires_grad_()
    single = make_start(3)[1:2].clone().requires_grad_()
    batch_optimizer = LBFGS([batch], history=4)
    single_optimizer = LBFGS([single], history=4)
    for _ in range(15):
        batch_x = make_step(batch_optimizer, batch)
        torch.testing.assert_close(batch_x[1:2], make_step(single_optimizer, single))


def test_a_pair_without_curvature_has_no_effect() -> None:
    """On a plane the direction stays the gradient's, as torch's does, and nothing becomes NaN."""
    x = make_start(1).requires_grad_()
    torch_x = make_start(1).requires_grad_()
    optimizer = LBFGS([x])
    torch_optimizer = torch.optim.LBFGS([torch_x], max_iter=1)

    def closure() -> Tensor:
        torch_optimizer.zero_grad()
        torch_x.backward(torch.ones_like(torch_x))
        return torch_x.sum()

    for _ in range(4):
        x.grad = torch.ones_like(x)
        optimizer.step()
        torch_optimizer.step(closure)  # type: ignore[arg-type]
        torch.testing.assert_close(x.detach(), torch_x.detach())


def test_it_stays_at_the_minimum() -> None:
    x = torch.ones(2, 12, dtype=torch.float64).requires_grad_()
    optimizer = LBFGS([x])
    for _ in range(3):
        assert torch.equal(make_step(optimizer, x), torch.ones(2, 12, dtype=torch.float64))


def minimize_scaled_quadratic(scale: float) -> Tensor:
    x = make_start(2).float().requires_grad_()
    optimizer = LBFGS([x], max_rms_step=0.5)
    weights = torch.linspace(1, 20, 12)
    for _ in range(12):
        optimizer.zero_grad()
        (scale * (weights * x.square()).sum()).backward()
        optimizer.step()
    return x.detach()


@pytest.mark.parametrize("scale", [1e-6, 1e-9])
def test_an_objective_in_tiny_units_takes_the_same_steps(scale: float) -> None:
    """Its curvature lies below the threshold that torch's L-BFGS has, which then stands still."""
    torch.testing.assert_close(
        minimize_scaled_quadratic(scale), minimize_scaled_quadratic(1.0), rtol=0, atol=0.02
    )


def test_single_precision_reaches_the_minimum() -> None:
    x = make_start(1).float().requires_grad_()
    optimizer = LBFGS([x], lr=0.8)
    for _ in range(120):
        make_step(optimizer, x)
    assert valley_loss(x).item() < 1e-6


def compute_inverse_hessian(pairs: list[tuple[Tensor, Tensor]], kernel: Tensor) -> Tensor:
    """H by its definition: one BFGS update after the other, from γK, γ = sᵀy/yᵀKy of the newest."""
    newest_s, newest_y = pairs[-1]
    inverse = kernel * (newest_s @ newest_y) / (newest_y @ kernel @ newest_y)
    for s, y in pairs:
        projection = torch.eye(12) - s.outer(y) / (s @ y)
        inverse = projection @ inverse @ projection.T + s.outer(s) / (s @ y)
    return inverse


def test_a_preconditioner_replaces_the_identity_as_the_first_guess() -> None:
    generator = torch.Generator().manual_seed(3)
    random_matrix = torch.randn(12, 12, dtype=torch.float64, generator=generator)
    kernel = random_matrix @ random_matrix.T / 12 + torch.eye(12)
    history = 4
    x = make_start(1).requires_grad_()
    optimizer = LBFGS([x], history=history, preconditioner=lambda gradient: gradient @ kernel)
    positions: list[Tensor] = []
    gradients: list[Tensor] = []
    for _ in range(15):
        positions.append(x.detach()[0].clone())
        next_position = make_step(optimizer, x)[0]
        assert x.grad is not None
        gradients.append(x.grad[0].clone())
        pairs: list[tuple[Tensor, Tensor]] = []
        for index in range(len(positions) - 1):
            s = positions[index + 1] - positions[index]
            y = gradients[index + 1] - gradients[index]
            if s @ y > 1e-10:
                pairs.append((s, y))
        pairs = pairs[-history:]
        if pairs:
            step = next_position - positions[-1]
            expected = -compute_inverse_hessian(pairs, kernel) @ gradients[-1]
            torch.testing.assert_close(step, expected, rtol=1e-5, atol=1e-9)
    assert valley_loss(x).item() < 0.5 * valley_loss(make_start(1)).item()


def test_the_root_mean_square_of_a_step_is_bounded() -> None:
    """The first step is a tenth of the bound for every image, a later one the bound at most."""
    x = (5 * make_start(3)).requires_grad_()
    optimizer = LBFGS([x], max_rms_step=0.1)
    rms_by_step: list[Tensor] = []
    for _ in range(6):
        start = x.detach().clone()
        step = make_step(optimizer, x) - start
        rms_by_step.append(step.square().mean(1).sqrt())
    tenth = torch.full((3,), 0.01, dtype=torch.float64)
    torch.testing.assert_close(rms_by_step[0], tenth)
    later = torch.stack(rms_by_step[1:])
    assert float(later.max()) == pytest.approx(0.1)


# ── going on at another size ──


def make_waves(height: int, width: int) -> Tensor:
    """One wave down the image, one across it with twice the frequency: 2×1×1×H×W."""
    down = torch.cos(torch.pi * (torch.arange(height) + 0.5) / height).double()
    across = torch.cos(2 * torch.pi * (torch.arange(width) + 0.5) / width).double()
    waves = [down[:, None].expand(height, width), across.expand(height, width)]
    return torch.stack(waves)[:, None, None]


def make_wave_image(height: int, width: int) -> Tensor:
    down, across = make_waves(height, width)
    return (0.3 * down + 0.5 * across).requires_grad_()


def compute_wave_loss(image: Tensor, factor: float) -> Tensor:
    """Two waves of different curvature; means over the pixels, the same number at every size."""
    waves = make_waves(image.shape[-2], image.shape[-1])
    amplitudes = (image * waves).mean((2, 3, 4)).square()[:, 0]
    return factor * (5 * amplitudes[0] + 0.2 * amplitudes[1])


def make_wave_step(optimizer: LBFGS, image: Tensor, factor: float) -> None:
    optimizer.zero_grad()
    compute_wave_loss(image, factor).backward()
    optimizer.step()


def test_curvature_pairs_hold_at_another_size_and_scale() -> None:
    """The first step at 40×56, of a loss three times that at 16×24, ends at the minimum."""
    small = make_wave_image(16, 24)
    large = make_wave_image(40, 56)
    small_optimizer = LBFGS([small])
    large_optimizer = LBFGS([large])
    for _ in range(12):
        make_wave_step(small_optimizer, small, 1.0)
    start_loss = compute_wave_loss(large, 3.0).item()
    large_optimizer.inherit_state(small_optimizer, objective_ratio=3.0)
    make_wave_step(large_optimizer, large, 3.0)
    assert compute_wave_loss(large, 3.0).item() < 1e-3 * start_loss


def test_inherited_products_are_those_of_the_resized_pairs() -> None:
    """Up to the error of resizing. Only the upper triangle of SᵀY is used."""
    small = make_wave_image(16, 24)
    small_optimizer = LBFGS([small], lr=0.5, history=4)
    for _ in range(7):
        make_wave_step(small_optimizer, small, 1.0)
    large_optimizer = LBFGS([make_wave_image(40, 56)], history=4)
    large_optimizer.inherit_state(small_optimizer, objective_ratio=3.0)

    memory = large_optimizer.memories[0]
    slots = memory.slots_by_age
    assert len(slots) == 4
    position_changes = memory.position_changes[0, slots]
    gradient_changes = memory.gradient_changes[0, slots]
    sy_products = position_changes @ gradient_changes.T
    yy_products = gradient_changes @ gradient_changes.T
    scale = sy_products[-1, -1] / yy_products[-1, -1]
    inherited_sy = memory.sy_products[0, slots][:, slots]
    inherited_yy = memory.yy_products[0, slots][:, slots]
    torch.testing.assert_close(inherited_sy.triu(), sy_products.triu(), rtol=0.03, atol=1e-9)
    torch.testing.assert_close(inherited_yy, yy_products, rtol=0.03, atol=1e-9)
    torch.testing.assert_close(memory.scale[0, 0], scale, rtol=0.03, atol=0)
