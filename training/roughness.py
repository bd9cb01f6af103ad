"""How rough the filters of a first layer look."""

import torch
from torch import Tensor
from torch.nn import functional as F

LAPLACIAN = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)


def measure_roughness(filters: Tensor) -> Tensor:
    """Σ(∇²w)² / Σw² per filter, averaged: about 20 for white noise, below 2 for a smooth edge."""
    laplacian = LAPLACIAN.to(filters.device)
    curvature = F.conv2d(filters.flatten(0, 1).unsqueeze(1), laplacian, padding=1)
    curvature_energy = curvature.view_as(filters).square().sum((1, 2, 3))
    energy = filters.square().sum((1, 2, 3)).clamp_min(1e-12)
    return (curvature_energy / energy).mean()
