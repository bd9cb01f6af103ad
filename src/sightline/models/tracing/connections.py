"""Which layer's channels a convolution or linear layer reads, and with which weights.

Between two layers there may be normalization, nonlinearities, pooling and shortcuts, all of which
keep the channels apart. They are not looked at: where channel c of one layer reaches only channel c
of another's input, the gradient of that channel is zero in all other channels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sightline.errors import SightlineError
from sightline.models.layers.capture import make_plain_tensor
from sightline.models.model import Model

# Channels that are tried: behind a ReLU the gradient of some is zero everywhere.
MAX_TRIED_CHANNELS = 6


def find_source_layer(model: Model, layer: str, candidates: Sequence[str]) -> str | None:
    """The last of the candidates whose channels a layer reads one by one; None if there is none.

    Args:
        layer: A convolution or linear layer, by its own name.
        candidates: Layers before it, in the order of the forward pass.
    """
    unit_counts = {name: model.layers[name].shape[0] for name in candidates if name != layer}
    channel_count = count_input_channels(model, layer)
    fitting = [name for name, count in unit_counts.items() if count == channel_count]
    if not fitting:
        return None

    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(model.blank().shape, generator=generator)
    image = noise.to(model.device).requires_grad_()
    with torch.enable_grad():
        tensors = model.run(image, [*fitting, f"{layer}:in"])
        layer_input = tensors[f"{layer}:in"]
        outputs = [tensors[name] for name in fitting]
        tried = torch.linspace(0, channel_count - 1, min(MAX_TRIED_CHANNELS, channel_count))
        for channel in tried.round().int().tolist():
            gradients = torch.autograd.grad(
                layer_input[0, channel].sum(), outputs, retain_graph=True, allow_unused=True
            )
            for name, gradient in reversed(list(zip(fitting, gradients, strict=True))):
                if _is_confined(gradient, channel):
                    return name
    return None


def _is_confined(gradient: Tensor | None, channel: int) -> bool:
    """Whether a gradient 1×C×… is zero in all channels but one, and not in that one.

    There is none where nothing depends on the layer.
    """
    if gradient is None:
        return False
    magnitudes = gradient[0].flatten(1).abs().amax(1) if gradient.ndim > 2 else gradient[0].abs()
    own_magnitude = float(magnitudes[channel])
    return own_magnitude > 0 and float(magnitudes.sum()) == own_magnitude


def count_input_channels(model: Model, layer: str) -> int:
    """How many channels a convolution or linear layer reads; 0 for other layers."""
    module = find_weight_module(model, layer)
    if isinstance(module, nn.Linear):
        return module.in_features
    return 0 if module is None else module.in_channels


def find_weight_module(model: Model, layer: str) -> nn.Conv2d | nn.Linear | None:
    """The convolution or linear module of a layer; None for other layers."""
    known_layer = model.layers.get(layer)
    if known_layer is None or known_layer.step:
        return None
    module = model.module(layer)
    return module if isinstance(module, (nn.Conv2d, nn.Linear)) else None


def read_weight(module: nn.Module) -> Tensor:
    """The weights of a convolution or linear layer, single precision, on the CPU.

    With weight or spectral normalization they are computed, and are no parameter. Raises
    SightlineError for weights of a class whose numbers can't be read.
    """
    weight: Any = module.weight
    return make_plain_tensor(weight.detach().float().cpu())


def read_channel_weights(model: Model, layer: str) -> Tensor:
    """How strongly each unit of a layer reads each channel of its input, units×channels.

    It is the norm of the filter's part for that channel, with the sign of its sum. Channels of
    other groups have 0.

    Raises SightlineError for a layer that is no convolution and not linear.
    """
    module: Any = find_weight_module(model, layer)
    if module is None:
        raise SightlineError(f"{layer} has no weights that read channels")
    weight = read_weight(module)
    if weight.ndim == 2:
        return weight
    filters = weight.flatten(2)
    own_channels = filters.norm(dim=2) * filters.sum(2).sign()
    groups = module.groups
    if groups == 1:
        return own_channels
    unit_count, group_channels = own_channels.shape
    strengths = torch.zeros(unit_count, group_channels * groups)
    units_per_group = unit_count // groups
    for unit in range(unit_count):
        first_channel = (unit // units_per_group) * group_channels
        strengths[unit, first_channel : first_channel + group_channels] = own_channels[unit]
    return strengths


def find_classifier(model: Model) -> str | None:
    """The last linear layer, if its units are the classes; None where there is none."""
    try:
        class_count = len(model.labels)
    except SightlineError:
        return None
    linear_layers = [
        name for name in model.layers if isinstance(find_weight_module(model, name), nn.Linear)
    ]
    if not linear_layers or model.layers[linear_layers[-1]].shape[-1] != class_count:
        return None
    return linear_layers[-1]
