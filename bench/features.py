"""Features of a shallow layer: the truncated forward pass against a peer that runs the whole
network.

`python bench/features.py`: VGG-16 with random weights, one image of 224 px, interleaved, medians
and ratios.
"""

import statistics
import time
from collections.abc import Callable

import torch
from captum.attr import LayerActivation
from torchvision.models import vgg16

import sightline as sl

LAYERS = {"conv1_2": "2", "conv3_3": "14", "conv5_3": "28"}


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def main() -> None:
    network = vgg16(weights=None).eval()
    model, image = (
        sl.load(network, size=224),
        torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)),
    )
    paths = {layer: f"features.{index}" for layer, index in LAYERS.items()}
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for layer, path in paths.items():
        peer, normal = LayerActivation(network, network.get_submodule(path)), model.normalize(image)
        with torch.no_grad():
            pairs = [
                (
                    seconds(lambda: model.features(image, path)),
                    seconds(lambda: peer.attribute(normal)),
                )
                for _ in range(12)
            ][2:]
        ours, theirs = (statistics.median(times) * 1000 for times in zip(*pairs, strict=True))
        ratio = statistics.median(peer_time / own for own, peer_time in pairs)
        print(
            f"{layer}: sightline {ours:.0f} ms, captum LayerActivation {theirs:.0f} ms, "
            f"{ratio:.1f} times faster"
        )


if __name__ == "__main__":
    main()
