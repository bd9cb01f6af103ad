"""Averages the weights of networks of one origin, and prepares the result for shipping.

    python training/average.py FILE:SHARE ... --out FILE [--roughness R] [--bits N] [--grid G]

Networks trained from the same weights can be averaged (Wortsman et al. 2022, "Robust fine-tuning of
zero-shot models"): between one trained against adversarial examples and one trained plainly lie
networks that are nearly as robust as the first and nearly as accurate as the second.

A FILE holds weights (safetensors), or is a checkpoint of training, whose averaged weights count.
The filters of the first layer are smoothed until their roughness is R and then scaled to one
contrast. Weights beyond the first layer are rounded to N significant bits, and to multiples of a
power of two near 1/G of their layer's standard deviation, so that the file compresses well.
"""

import argparse
from pathlib import Path

import torch
from export import balance_filters
from journal import read_averaged_weights, run_script
from roughness import measure_roughness
from safetensors.torch import save_file
from torch import Tensor, nn

from sightline.errors import SightlineError
from sightline.models.weights.checkpoint import fill_network_weights, read_weights
from sightline.models.zoo.sightnet import make_sightnet

# Length of a step along the gradient of the roughness: filters move by a hundredth or so in all.
SMOOTHING_STEP = 0.02
MAX_SMOOTHING_STEPS = 1000

# float16 has 11 significant bits.
FULL_BITS = 11


def read_state(path: Path) -> dict[str, Tensor]:
    """The weights in a file, or the averaged weights in a checkpoint, as float32."""
    state = read_weights(path) if path.suffix == ".safetensors" else read_averaged_weights(path)
    return {name: value.float() for name, value in state.items()}


def average_states(shares: dict[Path, float]) -> dict[str, Tensor]:
    """The weighted mean of the weights in several files."""
    total_share = sum(shares.values())
    mean: dict[str, Tensor] = {}
    for path, share in shares.items():
        for name, value in read_state(path).items():
            part = value * (share / total_share)
            mean[name] = mean[name] + part if name in mean else part
    return mean


def smooth_filters(filters: nn.Parameter, roughness: float) -> None:
    """Moves filters down the gradient of their roughness until it is no more than this."""
    for _ in range(MAX_SMOOTHING_STEPS):
        current = measure_roughness(filters)
        if current.item() <= roughness:
            return
        (gradient,) = torch.autograd.grad(current, filters)
        with torch.no_grad():
            filters -= SMOOTHING_STEP * gradient
    raise SightlineError(f"the first filters did not reach a roughness of {roughness}")


def round_significant_bits(value: Tensor, bits: int) -> Tensor:
    """Numbers rounded to so many significant bits."""
    mantissa, exponent = torch.frexp(value)
    rounded = (mantissa * 2**bits).round() / 2**bits
    return torch.ldexp(rounded, exponent)


def round_to_grid(value: Tensor, fineness: int) -> Tensor:
    """Numbers rounded to multiples of a power of two near 1/fineness of their deviation."""
    step = 2 ** (value.std() / fineness).log2().round()
    return (value / step).round() * step


def parse_share(text: str) -> tuple[Path, float]:
    """FILE:SHARE."""
    file, _, share = text.rpartition(":")
    return Path(file), float(share)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=parse_share, nargs="+", metavar="FILE:SHARE")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--roughness", type=float, help="of the first layer's filters, at most")
    parser.add_argument("--bits", type=int, default=FULL_BITS, help="significant bits of a weight")
    parser.add_argument("--grid", type=int, help="fineness of the grid of weights")
    options = parser.parse_args()

    network = make_sightnet().eval()
    fill_network_weights(network, average_states(dict(options.files)), options.out, "sightnet")
    first = network.get_submodule("conv1")
    if options.roughness:
        smooth_filters(first.weight, options.roughness)
    balance_filters(first, network.get_submodule("conv2_1"))

    tensors: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        is_rounded = value.ndim > 1 and not name.startswith("conv1.")
        kept = round_significant_bits(value, options.bits) if is_rounded else value
        if is_rounded and options.grid:
            kept = round_to_grid(kept, options.grid)
        tensors[name] = kept.half().contiguous()
    save_file(tensors, options.out)
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    run_script(main)
