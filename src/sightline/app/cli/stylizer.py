"""`sightline stylizer train|apply|export`: feed-forward style networks from the command line."""

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter, validators

from sightline.app.cli.options import (
    DeviceOption,
    JsonOption,
    QuietOption,
    SizeOption,
    WeightsOption,
)
from sightline.app.cli.progress import make_progress_display
from sightline.errors import SightlineError
from sightline.generators.apply import (
    list_folder_pictures,
    read_picture_batches,
    resize_if_given,
    restyle_images,
    restyle_video,
)
from sightline.generators.architectures.style import NormKind
from sightline.generators.checkpoint import (
    DEFAULT_STYLE_SIZE,
    AnyStyleNetwork,
    FixedStyleNetwork,
    parse_style_blend,
    read_style_network,
)
from sightline.generators.export import export_onnx as write_onnx
from sightline.generators.training.dataset import decode_photo_folder
from sightline.generators.training.fixed_styles import TrainingPlan
from sightline.generators.training.train import TrainingStep
from sightline.generators.training.train import train_stylizer as run_training
from sightline.images.files import check_writable
from sightline.images.io import read_file_or_sample, write
from sightline.images.library import find_pictures_below
from sightline.images.video import read_video, write_video
from sightline.models.zoo.load import choose_default_device, load, resolve_device

PHOTO_SIZE_FACTOR = 1.25  # photographs are kept that much larger than the crops

READABLE_VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif")

POSITIVE_NUMBER = validators.Number(gt=0)

StyleNetworkOption = Annotated[
    str, Parameter(help="A style network's file, or painters, which comes with Sightline.")
]


def train(
    *styles: Annotated[
        Path,
        Parameter(help="Style images, or folders of them; each file's name becomes the style's."),
    ],
    folder: Annotated[Path, Parameter(help="Folder of photographs to train on.")],
    norm: Annotated[
        NormKind | Literal["adaptive"],
        Parameter(
            help="instance, batch, conditional for many styles in one network, or adaptive for any style."
        ),
    ] = "conditional",
    extend: Annotated[
        Path | None,
        Parameter(help="A style network that gets the styles as new rows; all else of it stays."),
    ] = None,
    loss: Annotated[
        str,
        Parameter(
            help="Loss network, with adaptive also the encoder: a name that sightline knows."
        ),
    ] = "sightnet",
    weights: WeightsOption = None,
    width: Annotated[
        int, Parameter(help="Channels at full size.", validator=validators.Number(gte=4, lte=64))
    ] = 24,
    blocks: Annotated[
        int, Parameter(help="Residual blocks.", validator=validators.Number(gte=1, lte=16))
    ] = 5,
    size: Annotated[
        int,
        Parameter(
            help="Side of the crops to train on.", validator=validators.Number(gte=32, lte=1024)
        ),
    ] = 128,
    style_size: Annotated[
        int,
        Parameter(
            help="Short side of the style images: smaller, finer strokes.",
            validator=POSITIVE_NUMBER,
        ),
    ] = 256,
    batch: Annotated[
        int, Parameter(help="Photographs in a step, over all devices.", validator=POSITIVE_NUMBER)
    ] = 4,
    steps: Annotated[int, Parameter(help="Steps of Adam.", validator=POSITIVE_NUMBER)] = 4000,
    lr: Annotated[float, Parameter(help="Step size of Adam.", validator=POSITIVE_NUMBER)] = 1e-3,
    content_weight: Annotated[
        float,
        Parameter(help="Weight of content; a loss of 1 is that of two unrelated photographs."),
    ] = 1.0,
    style_weight: Annotated[
        float, Parameter(help="Weight of style; a loss of 1 is that of untouched photographs.")
    ] = 5.0,
    tv_weight: Annotated[float, Parameter(help="Weight of total variation.")] = 1.0,
    every: Annotated[
        int, Parameter(help="Steps between checkpoints.", validator=POSITIVE_NUMBER)
    ] = 250,
    seed: int = 0,
    accelerator: Annotated[str, Parameter(help="cpu, cuda, mps or auto.")] = "auto",
    devices: Annotated[
        int, Parameter(help="Devices (processes) on each node.", validator=POSITIVE_NUMBER)
    ] = 1,
    nodes: Annotated[int, Parameter(help="Machines.", validator=POSITIVE_NUMBER)] = 1,
    precision: Annotated[
        Literal["32-true", "bf16-mixed", "16-mixed"], Parameter(help="Precision of the products.")
    ] = "32-true",
    out: Annotated[
        Path, Parameter(help="Folder for checkpoint, network, curves and samples.")
    ] = Path("out/stylizer"),
    quiet: QuietOption = False,
) -> int:
    """Trains a style network on a folder of photographs, or resumes its training."""
    pictures = [
        file for path in styles for file in (find_pictures_below(path) if path.is_dir() else [path])
    ]
    plan = TrainingPlan(
        tuple(pictures),
        out,
        norm,
        width,
        blocks,
        size,
        style_size,
        batch,
        steps,
        lr,
        content_weight,
        style_weight,
        tv_weight,
        every,
        seed,
        extend,
    )
    check_writable(out)
    if batch % (devices * nodes):
        raise SightlineError(
            f"batch is {batch}; it must be a multiple of the {devices * nodes} processes that share it"
        )
    fabric = launch_fabric(accelerator, devices, nodes, precision)
    model = load(loss, weights=weights, device=fabric.device)
    with make_progress_display(
        "{task.description:<36}", quiet=quiet or not fabric.is_global_zero
    ) as display:
        task = display.add_task("decoding photographs", total=1.0)
        with fabric.rank_zero_first():
            photos = decode_photo_folder(
                folder,
                math.ceil(size * PHOTO_SIZE_FACTOR),
                out,
                lambda done: display.update(task, completed=done),
            )

        def shown(step: TrainingStep) -> None:
            told = f"content {step.losses['content']:.3f}, style {step.losses['style']:.3f}"
            display.update(task, description=told, completed=step.index, total=step.total)

        path = run_training(plan, photos, model, fabric, shown)
    if fabric.is_global_zero:
        print(path)
    return 0


def launch_fabric(accelerator: str, devices: int, nodes: int, precision: Any) -> Any:
    """Lightning's Fabric, its processes running; raises SightlineError without it or for devices that this machine lacks."""
    try:
        import tensorboard  # noqa: F401  # pyright: ignore[reportUnusedImport]
        from lightning_fabric import Fabric
        from lightning_fabric.utilities.exceptions import MisconfigurationException
    except ImportError as error:
        raise SightlineError(
            f"training needs the extra «train» ({error}); pip install 'sightline[train]'"
        ) from error
    try:
        fabric = Fabric(
            accelerator=accelerator, devices=devices, num_nodes=nodes, precision=precision
        )
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        raise SightlineError(
            f"{devices} devices of {accelerator} can't be used here ({str(error).splitlines()[0]})"
        ) from error
    fabric.launch()
    return fabric


def apply(
    model: StyleNetworkOption,
    source: Annotated[
        str,
        Parameter(help="An image, a name of `sightline samples`, a folder of images, or a video."),
    ],
    /,
    *,
    style: Annotated[
        str,
        Parameter(
            help="A style's name, or a picture for a network of any style; or a blend such as wave:2,scream:1. The first by default."
        ),
    ] = "",
    alpha: Annotated[
        float,
        Parameter(
            help="Of any style: how strongly it is taken over.",
            validator=validators.Number(gte=0, lte=1),
        ),
    ] = 1.0,
    style_size: Annotated[
        int,
        Parameter(
            help="Of any style: short side of its picture; smaller, finer strokes.",
            validator=POSITIVE_NUMBER,
        ),
    ] = DEFAULT_STYLE_SIZE,
    size: SizeOption = None,
    batch: Annotated[
        int,
        Parameter(help="Images of one size at once.", validator=validators.Number(gte=1, lte=256)),
    ] = 4,
    temporal: Annotated[
        float,
        Parameter(
            help="Of a video: how much is kept along the motion.",
            validator=validators.Number(gte=0, lte=1),
        ),
    ] = 0.6,
    fps: Annotated[
        int, Parameter(help="Frames per second of the video made.", validator=POSITIVE_NUMBER)
    ] = 25,
    device: DeviceOption = None,
    out: Annotated[Path, Parameter(help="Folder for what is made.")] = Path("out/stylizer"),
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Restyles an image, a folder of images or a video with a trained style network."""
    check_writable(out)
    styles = read_style_network(model, resolve_device(device or choose_default_device()))
    shares = parse_style_blend(style or styles.names[0])
    if isinstance(styles, FixedStyleNetwork) and (alpha, style_size) != (1.0, DEFAULT_STYLE_SIZE):
        raise SightlineError(
            "alpha and style size are for networks of any style; the styles of this one were fixed when it was trained"
        )
    mix = (
        styles.make_mix(shares, alpha, style_size)
        if isinstance(styles, AnyStyleNetwork)
        else styles.make_mix(shares)
    )
    path = Path(source)
    if path.is_dir() and path.resolve() == out.resolve():
        raise SightlineError(
            f"the pictures in {str(path)!r} would be overwritten; give another --out"
        )
    left_out: list[str] = []
    if path.is_dir():
        files, left_out = restyle_folder(
            styles, path, out, mix=mix, size=size, batch=batch, quiet=quiet
        )
    elif path.suffix.lower() in READABLE_VIDEO_SUFFIXES:
        made = restyle_video(
            styles, read_video(path), mix, size=size, batch_size=batch, temporal_weight=temporal
        )
        files = [out / f"{path.stem}.mp4"]
        write_video(made, files[0], fps=fps)
    else:
        files = [out / f"{path.stem}.png"]
        write(
            restyle_images(styles, resize_if_given(read_file_or_sample(source), size), mix),
            files[0],
        )
    if as_json:
        print(json.dumps({"files": [str(file) for file in files], "left_out": left_out}))
    else:
        print(
            "\n".join(
                [*(str(file) for file in files), *(f"left out: {reason}" for reason in left_out)]
            )
        )
    return 0


def restyle_folder(
    styles: FixedStyleNetwork | AnyStyleNetwork,
    folder: Path,
    out: Path,
    *,
    mix: Any,
    size: int | None,
    batch: int,
    quiet: bool,
) -> tuple[list[Path], list[str]]:
    """Restyles the pictures of a folder; gives the files made, and why others could not be read."""
    files, left_out = list[Path](), list[str]()
    paths = list_folder_pictures(folder)
    with make_progress_display("{task.description:<36}", quiet=quiet) as display:
        task = display.add_task("restyling", total=len(paths))
        for held, stack in read_picture_batches(paths, size, batch):
            display.advance(task, len(held))
            if isinstance(stack, SightlineError):
                left_out.append(str(stack))
                continue
            for path, made in zip(held, restyle_images(styles, stack, mix), strict=True):
                write(made, out / f"{path.stem}.png")
                files.append(out / f"{path.stem}.png")
    if not files:
        raise SightlineError(f"none of {len(paths)} pictures can be read; the first: {left_out[0]}")
    return files, left_out


def export(
    model: StyleNetworkOption,
    /,
    *,
    out: Annotated[Path, Parameter(help="The file to write.")] = Path("out/stylizer.onnx"),
) -> int:
    """Writes a style network as ONNX, for images of any size and any blend of its styles."""
    if out.suffix != ".onnx":
        raise SightlineError(f"{out.name}: the network is written as .onnx")
    check_writable(out.parent)
    told = write_onnx(read_style_network(model), out)
    print(f"{out}\ninputs: {told}; output: made N×3×H×W")
    return 0
