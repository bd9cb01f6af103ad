"""An image with transparency, in front of a new background in each step.

What stays opaque is what the score depends on (lucid, collapse_alpha_random).
"""

import torch
from torch import Tensor

from sightline.images.color import apply_channel_matrix
from sightline.optim.parameterizations.fourier import (
    Parameterization,
    compute_frequency_weights,
    make_channel_matrix,
    sum_weighted_waves,
)

# Found by trial on the embedded network: an opacity whose edges are as sharp as those of the
# colours leaves specks everywhere.
OPACITY_PENALTY = 0.1
OPACITY_FREQUENCY_EXPONENT = 2.5
OPACITY_SCALE = 0.5

# Steps over which the penalty rises to its full value: at once it would erase an image that shows
# nothing yet. (lucid waits for 150 steps.)
PENALTY_WARMUP_STEPS = 48

BACKGROUND_DEVIATION = 0.3  # standard deviation of the background's coefficients


class TransparentImage:
    """Colours by another parameterization, opacity by a spectrum of its own.

    Calling returns the colours over gray, N×C×H×W; `opacity` is then N×1×H×W in [0, 1].
    `replace_background` shows them over a random background of `channels` channels instead, the
    same for all images of a batch; one channel is a gray background.

    In each step the opacity's gradient grows by `opacity_penalty` times its mean magnitude (by less
    in the first steps). A pixel that does less for the score than that becomes transparent.
    """

    def __init__(
        self,
        colors: Parameterization,
        count: int,
        height: int,
        width: int,
        *,
        seed: int,
        opacity_penalty: float = OPACITY_PENALTY,
        channels: int = 3,
        device: torch.device | str = "cpu",
    ) -> None:
        self.colors = colors
        self.color_matrix = make_channel_matrix(channels).to(device)
        self.size = (height, width)
        self.opacity_penalty = opacity_penalty
        self.background_weights = compute_frequency_weights(height, width, 1.0).to(device)
        opacity_weights = compute_frequency_weights(height, width, OPACITY_FREQUENCY_EXPONENT)
        self.opacity_weights = OPACITY_SCALE * opacity_weights.to(device)
        # Real and imaginary parts, 2×N×1×H×(W // 2 + 1).
        self.opacity_spectrum = torch.zeros(
            2,
            count,
            1,
            *opacity_weights.shape,
            dtype=torch.float32,
            device=device,
            requires_grad=True,
        )
        self.parameters = [*colors.parameters, self.opacity_spectrum]
        self.opacity = torch.full(
            (count, 1, height, width), 0.5, dtype=torch.float32, device=device
        )
        self.call_count = 0
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self) -> Tensor:
        waves = sum_weighted_waves(self.opacity_spectrum, self.opacity_weights, self.size)
        self.opacity = waves.sigmoid()
        if self.opacity.requires_grad:
            self.penalize_opacity()
        gray = 0.5
        return self.opacity * self.colors() + (1 - self.opacity) * gray

    def penalize_opacity(self) -> None:
        """Adds the penalty to the gradient that will reach the opacity."""
        warmup = min(1, self.call_count / PENALTY_WARMUP_STEPS)
        penalty = self.opacity_penalty * warmup
        self.call_count += 1

        def add_penalty(gradient: Tensor) -> Tensor:
            magnitude = gradient.abs().mean((1, 2, 3), keepdim=True)
            return gradient + penalty * magnitude

        self.opacity.register_hook(add_penalty)

    def replace_background(self, image: Tensor) -> Tensor:
        """The image of the last call, over a random background instead of gray."""
        difference = self.draw_background() - 0.5
        return image + (1 - self.opacity) * difference

    def draw_background(self) -> Tensor:
        """Random colours, 1×C×H×W, weighted by frequency like a spectrum at its start."""
        weights = self.background_weights
        shape = (2, 1, len(self.color_matrix), *weights.shape)
        noise = torch.randn(shape, generator=self.generator, dtype=torch.float32)
        spectrum = (noise * BACKGROUND_DEVIATION).to(weights.device)
        waves = sum_weighted_waves(spectrum, weights, self.size)
        return apply_channel_matrix(waves, self.color_matrix).sigmoid()

    def project_(self) -> None:
        """Projects the colours onto what is allowed; every opacity spectrum is."""
        self.colors.project_()
