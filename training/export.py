"""Writes the averaged weights of a checkpoint as the half-precision file that the package ships.

    python training/export.py --checkpoint FILE --out FILE

Batch norm, where the training had it, is folded into the convolutions.

The filters of the first layer are brought to one contrast, so that a picture on one common scale
shows them all. ReLU and max pooling are positively homogeneous, so the network computes what it did
before if the next layer scales back.
"""

import argparse
import copy
from pathlib import Path

import torch
from journal import read_averaged_weights, run_script
from safetensors.torch import save_file
from torch import nn

from sightline.models.weights.checkpoint import fill_network_weights
from sightline.models.zoo.sightnet import make_sightnet


def make_plain_network(state: dict[str, torch.Tensor], path: Path) -> nn.Sequential:
    """The network without batch norm that computes what the trained one computes at inference."""
    has_norm = any(name.startswith("bn") for name in state)
    trained = make_sightnet(batch_norm=has_norm).eval()
    fill_network_weights(trained, state, path, "sightnet")
    plain = fold_batch_norm(trained) if has_norm else copy.deepcopy(trained)
    balance_filters(plain.get_submodule("conv1"), plain.get_submodule("conv2_1"))
    image = torch.randn(4, 3, 128, 128)
    torch.testing.assert_close(plain(image), trained(image), rtol=1e-3, atol=1e-3)
    return plain


def fold_batch_norm(trained: nn.Sequential) -> nn.Sequential:
    """The network without batch norm that computes the same at inference."""
    plain = make_sightnet().eval()
    for name, layer in plain.named_children():
        if isinstance(layer, nn.Conv2d):
            convolution = trained.get_submodule(name)
            norm = trained.get_submodule(name.replace("conv", "bn"))
            fused = nn.utils.fuse_conv_bn_eval(convolution, norm)
            layer.load_state_dict(fused.state_dict())
        elif isinstance(layer, nn.Linear):
            layer.load_state_dict(trained.get_submodule(name).state_dict())
    return plain


@torch.no_grad()
def balance_filters(first: nn.Conv2d, second: nn.Conv2d) -> None:
    """Scales the filters of `first` to one largest magnitude, and the inputs of `second` back."""
    peak = first.weight.abs().amax((1, 2, 3))
    scale = peak.max() / peak
    first.weight.mul_(scale.view(-1, 1, 1, 1))
    first.bias.mul_(scale)
    second.weight.div_(scale.view(1, -1, 1, 1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument(
        "--short",
        action="store_true",
        help="round weights to bfloat16's 8 bits, so that the file compresses to three quarters",
    )
    options = parser.parse_args()
    state = read_averaged_weights(options.checkpoint)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    network = make_plain_network(state, options.checkpoint)
    if options.short:
        network.bfloat16()
    tensors = {name: value.half().contiguous() for name, value in network.state_dict().items()}
    save_file(tensors, options.out)
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    run_script(main)
