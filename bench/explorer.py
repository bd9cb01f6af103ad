"""How long the explorer lets one wait, and how long its pictures take.

`python bench/explorer.py live [--model NAME] [--rounds N]`: an answer of the live tab to a cover
that moves, to other units that are off, and with an attribution; medians and the slowest.
`python bench/explorer.py synthesis [--model NAME] [--batches N] [--units N]`: the syntheses of some
batches of units, spread over all layers, and from them the time for all units; beside them as many
bare forward and backward passes through the network up to the layer, with whole pictures. Fewer
steps than a synthesis has are not enough: the first show windows, and dead units cost twice there.
Networks have random weights unless they are the embedded one.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

import sightline as sl
from sightline.app.web.delivery.live.network import LiveNetwork
from sightline.app.web.delivery.live.schema import LiveRequest
from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.pictures.cache import PictureCache
from sightline.app.web.pictures.synthesis import DEFAULT_STEPS, UnitSynthesis


def load_network(name: str) -> sl.Model:
    """The network, with random weights if it is not the embedded one."""
    return sl.load() if name == "sightnet" else sl.load(name, weights="random")


def scan_samples(model: sl.Model, folder: Path) -> sl.Scan:
    """A scan of a few sample photographs."""
    for name in sl.samples()[:6]:
        sl.write(sl.sample(name), folder / "photos" / f"{name}.png")
    return sl.scan(model, folder / "photos", store=folder / "a.scan", k=3)


def time_answers(live: LiveNetwork, requests: list[dict[str, object]]) -> str:
    """Median and slowest answer, in milliseconds, without the first."""
    seconds: list[float] = []
    for fields in requests:
        request = LiveRequest.model_validate({"image": "s-1", "layer": None, **fields})
        started = time.perf_counter()
        live.answer(request).model_dump_json()
        seconds.append(time.perf_counter() - started)
    times = [1000 * value for value in seconds[1:]]
    return f"median {statistics.median(times):6.0f} ms, slowest {max(times):6.0f} ms"


def measure_live(name: str, rounds: int) -> None:
    """Prints how long answers take."""
    model = load_network(name)
    with tempfile.TemporaryDirectory() as folder:
        scan = scan_samples(model, Path(folder))
        live = LiveNetwork(Explorer(scan, model), model, 1)
        layer = scan.layers[-1]
        off = {layer: [0]}
        covers = [[[step, step, step + 30, step + 40]] for step in range(rounds)]
        print(f"{name}, {scan.side} px, {scan.description.unit_count} units")
        print("cover      ", time_answers(live, [{"cover": cover} for cover in covers]))
        same_off = [{"cover": cover, "off": off} for cover in covers]
        print("units off  ", time_answers(live, same_off))
        new_off = [{"off": {layer: [step + 1]}} for step in range(rounds)]
        print("other units", time_answers(live, new_off))
        for attribution in ("saliency", "gradcam", "guided"):
            requests = [{"cover": cover, "attribution": attribution} for cover in covers]
            print(f"{attribution:<11}", time_answers(live, requests))


def time_bare_pass(model: sl.Model, layer: str, images: torch.Tensor) -> float:
    """Processor time of a forward pass up to a layer and the backward pass, in seconds an image."""
    seconds: list[float] = []
    leaf = images.clone().requires_grad_()
    for _ in range(3):
        started = time.process_time()
        features = model.run(leaf, [layer])[layer]
        torch.autograd.grad(features[:, 0].mean(), leaf)
        seconds.append(time.process_time() - started)
    return min(seconds) / len(images)


def measure_synthesis(name: str, batches: int, steps: int, batch_size: int | None) -> None:
    """Prints how long the syntheses of some units take, and what that makes for all."""
    model = load_network(name)
    with tempfile.TemporaryDirectory() as folder:
        scan = scan_samples(model, Path(folder))
        cache = PictureCache(Path(folder) / "pictures")
        syntheses = UnitSynthesis(model, cache, steps, batch_size=batch_size)
        layers = {layer: facts.units for layer, facts in scan.description.layers.items()}
        # Evenly spread over the units, so that a layer counts as its units do.
        ranges = [(layer, unit) for layer, count in layers.items() for unit in range(count)]
        total = 0.0
        bare_total = 0.0
        size = syntheses.choose_batch_size(len(ranges))
        print(f"{size} units at once")
        for number in range(batches):
            layer, unit = ranges[round((number + 0.5) * len(ranges) / batches)]
            first = max(0, min(unit, layers[layer] - size))
            units = range(first, min(first + size, layers[layer]))
            started = time.process_time()
            syntheses.keep_units(layer, list(units))
            seconds = (time.process_time() - started) / len(units)
            total += seconds
            shape = (len(units), model.channels, *syntheses.picture_size)
            bare = time_bare_pass(model, layer, torch.rand(shape))
            bare_total += bare
            step = 1000 * seconds / steps
            print(
                f"{layer:<32} {seconds:5.2f} s a unit, {step:6.2f} ms a step, "
                f"bare {1000 * bare:.2f}",
                flush=True,
            )
        mean = total / batches * DEFAULT_STEPS / steps
        print(
            f"{name}: {syntheses.picture_size} px, {DEFAULT_STEPS} steps, {mean:.2f} s a unit of "
            f"{torch.get_num_threads()} thread; {len(ranges)} units: "
            f"{mean * len(ranges) / 3600:.2f} core-hours, with bare passes "
            f"{bare_total / batches * DEFAULT_STEPS * len(ranges) / 3600:.2f}"
        )


def main() -> None:
    """Reads the options and measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("live", "synthesis"))
    parser.add_argument("--model", default="sightnet")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--steps", type=int, default=DEFAULT_STEPS)
    parser.add_argument("--units", type=int, default=None, help="units at once")
    options = parser.parse_args()
    if options.what == "live":
        measure_live(options.model, options.rounds)
    else:
        measure_synthesis(options.model, options.batches, options.steps, options.units)


if __name__ == "__main__":
    main()
