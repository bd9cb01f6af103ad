"""What the features of a layer depend on: the weights up to it.

A checkpoint that differs only behind a layer gives the same features there, so the pictures that
depend on those alone are not made again.
"""

import hashlib
from typing import Any

import torch
from torch import nn

from sightline.models.layers.capture import split_call_name
from sightline.models.model import Model

WHOLE_NETWORK = ""  # the key of the digest of all weights


def compute_layer_digests(model: Model) -> dict[str, str]:
    """The digest of what decides the features of each layer, by its name; under "", of the output.

    It is that of the weights and preprocessing, without the weights of modules that run only after
    the layer. A module counts from the first moment at which it or a module inside it runs.
    """
    layers = list(model.layers)
    starts = find_module_starts(model)
    owned_digests = {
        path: digest_own_weights(module) for path, module in model.network.named_modules()
    }
    # Modules in the order in which they begin, so that each layer takes those before it.
    paths = sorted(owned_digests, key=lambda path: (starts[path], path))
    running = hashlib.sha256(describe_preprocessing(model).encode())
    digests: dict[str, str] = {}
    next_path = 0
    for position, layer in enumerate(layers):
        while next_path < len(paths) and starts[paths[next_path]] <= position:
            path = paths[next_path]
            running.update(f"{path} {owned_digests[path]}".encode())
            next_path += 1
        running.update(f"{layer} {model.layers[layer].kind}".encode())
        digests[layer] = running.hexdigest()[:32]
    digests[WHOLE_NETWORK] = running.hexdigest()[:32]
    return digests


def find_module_starts(model: Model) -> dict[str, int]:
    """The position in the order of layers at which each module's weights may first be used.

    −1 for modules that no layer shows, which may run at any time, such as the network itself.
    """
    first_positions: dict[str, int] = {}
    for position, layer in enumerate(model.layers):
        path, _ = split_call_name(model.network, layer)
        # A container's own weights may be used before the modules in it have run.
        while path:
            first_positions.setdefault(path, position)
            path = path.rpartition(".")[0]
    return {path: first_positions.get(path, -1) for path, _ in model.network.named_modules()}


def digest_own_weights(module: nn.Module) -> str:
    """The digest of the parameters and buffers that belong to a module itself."""
    digest = hashlib.sha256(type(module).__qualname__.encode())
    digest.update(module.extra_repr().encode())
    own_state: dict[str, Any] = {}
    own_state.update(module.named_parameters(recurse=False))
    own_state.update(module.named_buffers(recurse=False))
    for name, tensor in sorted(own_state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        content = tensor.detach().cpu()
        if content.is_quantized:
            content = content.int_repr()
        digest.update(content.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def describe_preprocessing(model: Model) -> str:
    """What is done to an image before the network."""
    return f"{model.name} {model.describe_input()}"
