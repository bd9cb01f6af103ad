"""Exact nearest neighbours against faiss's flat index, maps against scikit-learn's, and whether the nearest of a dog are dogs.

`python bench/neighbors.py [--rounds 5] [--points 10000] [--skip knn|map|truth ...]`: 100,000 × 512 random normal vectors, 1,000 queries in one
batch, k = 10, one thread each, in turns, medians of processor time. t-SNE of clusters of as many points, PCA to 50 first for both, one
run of each. Truth: 800 photographs of as many ImageNet classes, MobileNetV2; a neighbour of a dog is right if its
class is one of the dogs', whichever.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import torch
from torch import Tensor

import sightline as sl
from sightline.coordinates import FIRST, components, faithful, laid_out
from sightline.methods.analytical.scanned import pixels
from sightline.nearest import accuracy, nearest
from sightline.scans import scan

DATA = Path(os.environ.get("SIGHTLINE_DATA") or Path(__file__).parents[2] / "shared" / "data")
COUNT, SIZE, QUERIES, K = 100_000, 512, 1_000, 10
NEAR = 5
# ImageNet's 1000 classes stand in the order of WordNet: the branches are ranges of their numbers, both ends included.
BRANCHES = {
    "dog": [(151, 268)],
    "cat": [(281, 293)],
    "other mammal": [(101, 106), (147, 150), (269, 280), (294, 299), (330, 388)],
    "bird": [(7, 24), (80, 100), (127, 146)],
    "fish": [(0, 6), (389, 397)],
    "reptile or amphibian": [(25, 68)],
    "other animal": [(69, 79), (107, 126), (300, 329)],
    "no animal": [(398, 999)],
}


def seconds(run: Callable[[], object]) -> float:
    """Processor time."""
    start = time.process_time()
    run()
    return time.process_time() - start


def knn(rounds: int) -> None:
    """Both searches in turns, and that they agree."""
    generator = torch.Generator().manual_seed(0)
    vectors, queries = (torch.randn(count, SIZE, generator=generator) for count in (COUNT, QUERIES))
    index = faiss.IndexFlatL2(SIZE)
    index.add(vectors.numpy())
    _, theirs = index.search(queries.numpy(), K)
    same = float((nearest(vectors, queries, K)[1].numpy() == theirs).mean())
    runs = lambda: nearest(vectors, queries, K), lambda: index.search(queries.numpy(), K), lambda: queries @ vectors.T
    times = [[seconds(run) for run in runs] for _ in range(rounds)]
    ours, peer, bare = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(peers / mine for mine, peers, _ in times)
    print(
        f"k-NN {COUNT:,} × {SIZE}, {QUERIES:,} queries, k {K}: sightline {ours:.2f} s, faiss {peer:.2f} s, ratio {ratio:.2f}; torch's bare product {bare:.2f} s; {same:.2%} of the answers are the same"
    )


def clusters(count: int) -> Tensor:
    """Fifty clouds."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, SIZE, generator=generator) + 2 * torch.randn(50, SIZE, generator=generator)[torch.arange(count) % 50]


def tsne(points: int) -> None:
    """One map each."""
    from sklearn.manifold import TSNE

    vectors, found = clusters(points), dict[str, Tensor]()

    def ours() -> None:
        found["sightline"] = laid_out(vectors, "tsne", 2, seed=0).places

    def peer() -> None:
        reduced, _ = components(vectors, FIRST, 0)
        found["scikit-learn"] = torch.from_numpy(TSNE(2, init="pca", random_state=0, max_iter=750, n_jobs=1).fit_transform(reduced.numpy()))

    times = {"sightline": seconds(ours), "scikit-learn": seconds(peer)}
    for name, took in times.items():
        kept = faithful(vectors, found[name], 10)
        print(
            f"t-SNE {points:,} × {SIZE}: {name} {took:.1f} s, trustworthiness {kept['trustworthiness']:.3f}, preserved {kept['preserved']:.3f}"
        )
    print(f"ratio {times['scikit-learn'] / times['sightline']:.2f}")


def truth() -> None:
    """The nearest others of every dog by features and by pixels, and what the nearest on a map tell of an image's branch."""
    options = {"pad_type": "same", "mean": [0.5] * 3, "std": [0.5] * 3}
    model = sl.load("mobilenetv2_100", weights=str(DATA / "nets" / "mobilenetv2_100_same.safetensors"), **options)
    number = {one["wnid"]: one["index"] for one in json.loads((DATA / "imagenet_labels.json").read_text())}
    with tempfile.TemporaryDirectory() as place:
        kept = scan(model, DATA / "imagenet_samples", store=Path(place) / "samples.scan", layers=["penultimate"])
        branches = torch.tensor([branch(number[Path(path).name.split("_")[0]]) for path in kept.paths])
        spaces = {"features": kept.vectors(), "pixels": pixels(kept)}
    counts = torch.bincount(branches)
    dogs = (branches == list(BRANCHES).index("dog")).nonzero().flatten()
    print(f"{kept.images} photographs: {', '.join(f'{n} {name}' for name, n in zip(BRANCHES, counts.tolist(), strict=True))}")
    for name, space in spaces.items():
        found = nearest(space, space[dogs], NEAR, "cosine" if name == "features" else "l2", own=dogs)[1]
        share = float((branches[found] == branches[dogs][:, None]).float().mean())
        print(f"of the {NEAR} nearest of a dog by {name}, dogs: {share:.1%} (chance {(len(dogs) - 1) / (kept.images - 1):.1%})")
    spaces["t-SNE map"] = laid_out(spaces["features"], "tsne", 2, seed=0).places
    for name, space in spaces.items():
        print(f"branch by the vote of the {K} nearest others, {name}: {accuracy(space, branches, K, 'l2'):.1%}")
    print(
        f"always the largest branch: {float(counts.max() / kept.images):.1%}; a random other's: {float((counts / kept.images).square().sum()):.1%}"
    )


def branch(number: int) -> int:
    """Which branch a class belongs to."""
    return next(i for i, ranges in enumerate(BRANCHES.values()) if any(low <= number <= high for low, high in ranges))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--skip", nargs="*", default=[], choices=["knn", "map", "truth"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    if "knn" not in given.skip:
        knn(given.rounds)
    if "truth" not in given.skip:
        truth()
    if "map" not in given.skip:
        tsne(given.points)
