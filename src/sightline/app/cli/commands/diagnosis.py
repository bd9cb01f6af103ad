"""The commands that compare two networks, explain mistakes and turn units off."""

import json
import shlex
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter, validators

from sightline.app.cli.options import (
    DeviceOption,
    JsonOption,
    LabelsOption,
    MeanOption,
    NetworkArguments,
    OutOption,
    QuietOption,
    StdOption,
    StoredNetworkOption,
    WeightsOption,
)
from sightline.app.cli.terminal import make_progress_display, print_lines

# Takes the name of the step that runs, and the share of all work that is done.
StepCallback = Callable[[str, float], None]

# Wrong answers that are printed one by one.
PRINTED_MISTAKES = 5

StoreOption = Annotated[Path, Parameter(help="A store that `sightline scan` wrote.")]


def compare(
    old: Annotated[Path, Parameter(help="The scan of the first network.")],
    new: Annotated[Path, Parameter(help="The scan of the second one, of the same images.")],
    /,
    *,
    images: Annotated[
        int,
        Parameter(
            help="At most so many images, evenly drawn.", validator=validators.Number(gte=20)
        ),
    ] = 5000,
    groups: Annotated[
        int,
        Parameter(
            help="At most so many groups of each kind.", validator=validators.Number(gte=1, lte=20)
        ),
    ] = 4,
    out: OutOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Compares two networks by their scans of the same images: layers, units, groups, answers."""
    from sightline.app.web.diagnosis.comparison import compose_lead
    from sightline.app.web.diagnosis.writing import write_comparison
    from sightline.data.store.reader import Scan
    from sightline.images.files import check_writable
    from sightline.methods.diagnosis.compare import compare as compare_scans

    folder = out or Path("out") / "compare"
    check_writable(folder)
    old_scan = Scan.open(old)
    new_scan = Scan.open(new)
    with show_steps("responses", quiet=quiet) as show_step:
        comparison = compare_scans(
            old_scan, new_scan, images=images, groups=groups, callback=show_step
        )
    files = write_comparison(comparison, old_scan, new_scan, folder, repeat_command())
    if as_json:
        print_json(comparison.to_json(), files)
    else:
        print_lines(compose_lead(comparison), *comparison.notes, str(files[0]))
    return 0


def mistakes(
    *,
    store: StoreOption,
    layers: Annotated[
        tuple[str, ...] | None,
        Parameter(
            name=("--layers", "--layer"),
            help="Layers whose units may be a cause; all that the scan followed by default.",
            consume_multiple=True,
            negative=(),
        ),
    ] = None,
    groups: Annotated[
        int,
        Parameter(help="At most so many groups.", validator=validators.Number(gte=1, lte=20)),
    ] = 6,
    seed: Annotated[int, Parameter(help="Of all that is drawn.")] = 0,
    model: StoredNetworkOption = None,
    weights: WeightsOption = None,
    labels: LabelsOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    device: DeviceOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Groups a network's mistakes over a scan, and tests what causes them."""
    from sightline.app.web.diagnosis.writing import write_mistakes
    from sightline.data.store.reader import Scan
    from sightline.images.files import check_writable
    from sightline.methods.diagnosis.mistakes import mistakes as find_mistakes

    folder = out or Path("out") / "mistakes"
    check_writable(folder)
    scan = Scan.open(store)
    network = NetworkArguments(model, weights, labels, mean, std, device)
    with show_steps("groups", quiet=quiet) as show_step:
        result = find_mistakes(
            scan,
            model=network.load_named(quiet=quiet),
            layers=layers,
            groups=groups,
            seed=seed,
            device=device,
            callback=show_step,
        )
    files = write_mistakes(result, scan, folder, repeat_command())
    if as_json:
        print_json(result.to_json(), files)
    else:
        sentences = [group.sentence for group in result.groups]
        paths = scan.paths
        surest = [
            f"{paths[mistake.id]}: {mistake.caption}"
            for mistake in result.surest[:PRINTED_MISTAKES]
        ]
        print_lines(*sentences, *result.notes, *surest, str(files[0]))
    return 0


def ablate(
    *,
    store: StoreOption,
    layer: Annotated[str, Parameter(help="Whose units are turned off, one at a time.")],
    units: Annotated[
        str | None, Parameter(help="Which ones: 12,40 or 0-63; all by default.")
    ] = None,
    fill: Annotated[
        Literal["zero", "mean", "resample"],
        Parameter(
            help="What stands in a unit's place: 0, its mean over the images of the batch, or its "
            "map in the next image."
        ),
    ] = "zero",
    images: Annotated[
        int,
        Parameter(help="At most so many images, evenly drawn.", validator=validators.Number(gte=2)),
    ] = 512,
    model: StoredNetworkOption = None,
    weights: WeightsOption = None,
    labels: LabelsOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    device: DeviceOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Turns each unit of a layer off, and measures its effect on accuracy and on every class."""
    from sightline.app.web.diagnosis.writing import write_effects
    from sightline.data.store.reader import Scan
    from sightline.images.files import check_writable
    from sightline.methods.diagnosis.ablation_effects import ablate as measure_effects
    from sightline.models.ablation import parse_ablation

    folder = out or Path("out") / "ablate"
    check_writable(folder)
    scan = Scan.open(store)
    network = NetworkArguments(model, weights, labels, mean, std, device)
    chosen = None if units is None else parse_ablation([f"{layer}:{units}"])[layer]
    with show_steps("images", quiet=quiet) as show_step:
        effects = measure_effects(
            scan,
            layer,
            model=network.load_named(quiet=quiet),
            units=chosen,
            fill=fill,
            images=images,
            device=device,
            callback=lambda done, total: show_step("images", done / total),
        )
    files = write_effects(effects, scan, folder, repeat_command())
    if as_json:
        print_json(effects.to_json(), files)
        return 0
    lines = [f"{effects.layer}: {effects.accuracy:.1%} are {effects.reference}, with all units"]
    for position in effects.list_strongest(5):
        worst = int(effects.class_drops[position].argmax())
        lines.append(
            f"without unit {effects.units[position]}: accuracy "
            f"{-effects.accuracy_drops[position]:+.1%}, {effects.flips[position]:.1%} change; "
            f"{effects.class_names[worst]} {-effects.class_drops[position, worst]:+.1%}"
        )
    print_lines(*lines, str(files[0]))
    return 0


@contextmanager
def show_steps(first_step: str, *, quiet: bool) -> Generator[StepCallback, None, None]:
    """A progress bar while the block runs, behind the name of the step."""
    with make_progress_display("{task.description:<12}", quiet=quiet) as display:
        task = display.add_task(first_step, total=1.0)

        def show_step(step: str, share: float) -> None:
            display.update(task, description=step, completed=share)

        yield show_step


def print_json(numbers: Mapping[str, Any], files: list[Path]) -> None:
    """Prints numbers and the files that were written as one JSON object."""
    print(json.dumps({**numbers, "files": list(map(str, files))}))


def repeat_command() -> str:
    """The command line that makes the same page again."""
    return shlex.join(["sightline", *sys.argv[1:]])
