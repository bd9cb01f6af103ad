"""`sightline stylizer train|apply|export`: feed-forward style networks from the command line."""

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter, validators
from torch import Tensor

from sightline.app.cli.options import (
    DeviceOption,
    JsonOption,
    QuietOption,
    SizeOption,
    WeightsOption,
)
from sightline.app.cli.terminal import (
    hide_downloads,
    make_progress_display,
    print_lines,
    show_progress_bar,
)
from sightline.errors import SightlineError, get_first_error_line
from sightline.generators.apply import (
    add_source_alpha,
    list_folder_pictures,
    name_restyled_files,
    read_picture_batches,
    refuse_to_overwrite,
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
from sightline.images.io.library import find_pictures_below
from sightline.images.io.pictures import read_file_or_sample, write
from sightline.images.validation import check_image
from sightline.images.video.properties import ANIMATION_SUFFIXES, set_frame_rate
from sightline.images.video.reading import is_animation_file, read_video, read_video_properties
from sightline.images.video.writing import write_video
from sightline.models.zoo.load import choose_default_device, load, resolve_device

# Photographs are stored this much larger than the crops.
PHOTO_SIZE_FACTOR = 1.25

READABLE_VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif")

POSITIVE_NUMBER = validators.Number(gt=0)

StyleNetworkArgument = Annotated[
    str, Parameter(help="A style network's file, or painters, which comes with Sightline.")
]

StyleNetwork = FixedStyleNetwork | AnyStyleNetwork


def train(
    *styles: Annotated[
        Path,
        Parameter(help="Style images, or folders of them; each file's name becomes the style's."),
    ],
    folder: Annotated[Path, Parameter(help="Folder of photographs to train on.")],
    norm: Annotated[
        NormKind | Literal["adaptive"],
        Parameter(
            help="instance, batch, conditional for many styles in one network, or adaptive for any "
            "style."
        ),
    ] = "conditional",
    extend: Annotated[
        Path | None,
        Parameter(
            help="A style network to add the styles to, as new rows; the rest of it stays fixed."
        ),
    ] = None,
    loss: Annotated[
        str,
        Parameter(help="Loss network, with adaptive also the encoder: a name as for --model."),
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
    """Trains a style network on a folder of photographs, or resumes its training.

    Ctrl-C ends it after its step with a checkpoint, from which the same command goes on.
    """
    plan = TrainingPlan(
        styles=tuple(_list_style_pictures(styles)),
        out=out,
        norm=norm,
        width=width,
        blocks=blocks,
        size=size,
        style_size=style_size,
        batch=batch,
        steps=steps,
        lr=lr,
        content_weight=content_weight,
        style_weight=style_weight,
        tv_weight=tv_weight,
        every=every,
        seed=seed,
        extend=extend,
    )
    check_writable(out)
    process_count = devices * nodes
    if batch % process_count:
        raise SightlineError(
            f"batch is {batch}; it must be a multiple of the {process_count} processes that "
            "share it"
        )

    fabric = launch_fabric(accelerator, devices, nodes, precision)
    is_quiet = quiet or not fabric.is_global_zero
    with hide_downloads(quiet=is_quiet):
        model = load(loss, weights=weights, device=fabric.device)
    with make_progress_display("{task.description}", quiet=is_quiet) as display:
        task = display.add_task("decoding photographs", total=1.0)

        def show_decoding(share: float) -> None:
            display.update(task, completed=share)

        with fabric.rank_zero_first():
            photo_side = math.ceil(size * PHOTO_SIZE_FACTOR)
            photos = decode_photo_folder(folder, photo_side, out, show_decoding)

    with show_progress_bar("training", quiet=is_quiet) as bar:

        def show_step(step: TrainingStep) -> bool:
            losses = f"content {step.losses['content']:.3f}, style {step.losses['style']:.3f}"
            return bar.update_display(step.index, step.total, f"{losses:<36}")

        path = run_training(plan, photos, model, fabric, show_step)
    if fabric.is_global_zero:
        print_lines(str(path))
        if bar.stopped:
            print("stopped; the same command resumes it", file=sys.stderr)
    return 130 if bar.stopped else 0


def _list_style_pictures(paths: tuple[Path, ...]) -> list[Path]:
    """The files among the paths, and the pictures below the folders among them."""
    pictures: list[Path] = []
    for path in paths:
        if path.is_dir():
            pictures += find_pictures_below(path)
        else:
            pictures.append(path)
    return pictures


def launch_fabric(accelerator: str, devices: int, nodes: int, precision: Any) -> Any:
    """Lightning's Fabric, with its processes started.

    Raises SightlineError where Lightning is not installed, and for devices that are not there.
    """
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
        reason = get_first_error_line(error)
        raise SightlineError(
            f"{devices} devices of {accelerator} can't be used here ({reason})"
        ) from error
    fabric.launch()
    return fabric


def apply(
    model: StyleNetworkArgument,
    source: Annotated[
        str,
        Parameter(help="An image, a name of `sightline samples`, a folder of images, or a video."),
    ],
    /,
    *,
    style: Annotated[
        str,
        Parameter(
            help="A style's name, or a picture for a network of any style; or a blend such as "
            "wave:2,scream:1. The first by default."
        ),
    ] = "",
    alpha: Annotated[
        float,
        Parameter(
            help="For networks of any style: the strength of the style.",
            validator=validators.Number(gte=0, lte=1),
        ),
    ] = 1.0,
    style_size: Annotated[
        int,
        Parameter(
            help="For networks of any style: short side of its picture; a smaller one gives "
            "finer strokes.",
            validator=POSITIVE_NUMBER,
        ),
    ] = DEFAULT_STYLE_SIZE,
    size: SizeOption = None,
    batch: Annotated[
        int,
        Parameter(
            help="Images of one size that are restyled at once.",
            validator=validators.Number(gte=1, lte=256),
        ),
    ] = 4,
    temporal: Annotated[
        float,
        Parameter(
            help="For videos: how much of the previous frame is kept along the motion.",
            validator=validators.Number(gte=0, lte=1),
        ),
    ] = 0.6,
    fps: Annotated[
        float | None,
        Parameter(
            help="Frames per second of the video that is written, without sound. By default the "
            "rate and the sound of the video that is read.",
            validator=POSITIVE_NUMBER,
        ),
    ] = None,
    device: DeviceOption = None,
    out: Annotated[Path, Parameter(help="Folder for the restyled pictures.")] = Path(
        "out/stylizer"
    ),
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Restyles an image, a folder of images or a video with a trained style network."""
    check_writable(out)
    network = read_style_network(model, resolve_device(device or choose_default_device()))
    restyling = Restyling(
        network=network,
        mix=make_style_mix(network, style, alpha, style_size),
        size=size,
        batch=batch,
        out=out,
    )
    path = Path(source)
    unreadable: list[str] = []
    if path.is_dir():
        written, unreadable = restyle_folder(restyling, path, quiet=quiet)
    elif path.suffix.lower() in READABLE_VIDEO_SUFFIXES or is_animation_file(path):
        written = [restyle_video_file(restyling, path, temporal=temporal, fps=fps)]
    else:
        written = [restyle_image_file(restyling, path)]

    if as_json:
        files = [str(file) for file in written]
        print(json.dumps({"files": files, "left_out": unreadable}))
        return 0
    print_lines(*map(str, written), *(f"left out: {reason}" for reason in unreadable))
    return 0


@dataclass(frozen=True)
class Restyling:
    """How images are restyled: the network, the blend of its styles, the size, the folder."""

    network: StyleNetwork
    mix: Tensor
    size: int | None
    batch: int
    out: Path


def make_style_mix(network: StyleNetwork, style: str, alpha: float, style_size: int) -> Tensor:
    """The network's second input for a style or a blend; its first style by default.

    Raises SightlineError for settings that only networks of any style have.
    """
    shares = parse_style_blend(style or network.names[0], network.names)
    if isinstance(network, AnyStyleNetwork):
        return network.make_mix(shares, alpha, style_size)
    if alpha != 1.0 or style_size != DEFAULT_STYLE_SIZE:
        raise SightlineError(
            "alpha and style size are for networks of any style; the styles of this one were "
            "fixed when it was trained"
        )
    return network.make_mix(shares)


def restyle_image_file(restyling: Restyling, path: Path) -> Path:
    """Restyles a file or sample. Returns the file written."""
    photo = check_image(read_file_or_sample(path), path.name)
    picture = resize_if_given(photo, restyling.size)
    written = restyling.out / f"{path.stem}.png"
    refuse_to_overwrite(path, written)
    restyled = restyle_images(restyling.network, picture, restyling.mix)
    write(add_source_alpha(restyled, path), written)
    return written


def restyle_video_file(
    restyling: Restyling, path: Path, *, temporal: float, fps: float | None
) -> Path:
    """Restyles a video frame by frame, as an MP4, or as GIF or WebP where it is one.

    Keeps frame rate and sound, or without the sound has `fps`. Returns the file written.
    """
    properties = read_video_properties(path)
    if fps is not None:
        properties = set_frame_rate(properties, fps, path.name)
    frames = restyle_video(
        restyling.network,
        read_video(path),
        restyling.mix,
        size=restyling.size,
        batch_size=restyling.batch,
        temporal_weight=temporal,
    )
    suffix = path.suffix.lower()
    if suffix not in ANIMATION_SUFFIXES:
        suffix = ".mp4"
    written = restyling.out / f"{path.stem}{suffix}"
    refuse_to_overwrite(path, written)
    sound_source = path if properties.has_sound else None
    write_video(frames, written, properties=properties, sound_from=sound_source)
    return written


def restyle_folder(
    restyling: Restyling, folder: Path, *, quiet: bool
) -> tuple[list[Path], list[str]]:
    """Restyles the pictures of a folder.

    Returns the files written, and why others could not be read. Raises SightlineError if none can
    be read, and for a folder whose pictures would be overwritten.
    """
    if folder.resolve() == restyling.out.resolve():
        raise SightlineError(
            f"the pictures in {str(folder)!r} would be overwritten; give another --out"
        )
    written: list[Path] = []
    unreadable: list[str] = []
    paths = list_folder_pictures(folder)
    file_names = name_restyled_files(paths)
    with make_progress_display("{task.description:<36}", quiet=quiet) as display:
        task = display.add_task("restyling", total=len(paths))
        for batch_paths, stack in read_picture_batches(paths, restyling.size, restyling.batch):
            display.advance(task, len(batch_paths))
            if isinstance(stack, SightlineError):
                unreadable.append(str(stack))
                continue
            restyled = restyle_images(restyling.network, stack, restyling.mix)
            for path, picture in zip(batch_paths, restyled, strict=True):
                file = restyling.out / file_names[path]
                refuse_to_overwrite(path, file)
                write(add_source_alpha(picture[None], path), file)
                written.append(file)
    if not written:
        raise SightlineError(
            f"none of {len(paths)} pictures can be read; the first: {unreadable[0]}"
        )
    return written, unreadable


def export(
    model: StyleNetworkArgument,
    /,
    *,
    out: Annotated[Path, Parameter(help="The file to write.")] = Path("out/stylizer.onnx"),
) -> int:
    """Writes a style network as ONNX, for images of any size and any blend of its styles."""
    if out.suffix != ".onnx":
        raise SightlineError(f"{out.name}: the network is written as .onnx")
    check_writable(out.parent)
    inputs = write_onnx(read_style_network(model), out)
    print_lines(str(out), f"inputs: {inputs}; output: made N×3×H×W")
    return 0
