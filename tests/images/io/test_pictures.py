"""Reading never hangs, never gives half a picture, and refuses in one line.

Pixels are re-derived here without Pillow.
"""

import io
import os
import socket
import struct
import tempfile
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import tifffile
import torch
from helpers import DATA, smooth
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.decode.picture import decode_as_rgb
from sightline.images.io import pictures as image

READ = {
    "wrong_suffix.png": (256, 256),
    "no_suffix": (256, 256),
    "name with spaces äöü 漢字.jpg": (256, 256),
    "cmyk.jpg": (256, 256),
    "gray8.png": (256, 256),
    "gray16.png": (256, 256),
    "la.png": (256, 256),
    "rgba.png": (256, 256),
    "palette_transparent.png": (256, 256),
    "exif_rotated_6.jpg": (256, 256),
    "progressive.jpg": (256, 256),
    "animated.gif": (256, 256),
    "animated.webp": (256, 256),
    "float32.tiff": (256, 256),
    "one_pixel.png": (1, 1),
    "thin_3000x2.png": (2, 3000),
    "constant_gray.png": (256, 256),
}
REFUSED = {
    "truncated.jpg": "truncated",
    "truncated_header.jpg": "truncated",
    "corrupt_scan.jpg": "broken",
    "empty.png": "empty file",
    "text.jpg": "not an image in a known format (JPEG, PNG",
    "html.png": "looks like HTML",
    "float32_nan.tiff": "NaN",
    "bomb_30000x30000.png": "900,000,000 pixels, over the limit of 100,000,000; "
    "sightline.read(path, limit=900000000)",
    "lying_header_60000x60000.png": "3,600,000,000 pixels, over the limit of 100,000,000",
    "pickle_with_code.pt": "looks like a zip archive or a pickle",
    "truncated.safetensors": "looks like safetensors",
    "wrong_shapes.safetensors": "looks like safetensors",
    "nan_weights.safetensors": "looks like safetensors",
}


@pytest.fixture
def bad_inputs() -> Path:
    folder = DATA / "badinputs"
    if not folder.is_dir():
        pytest.skip(
            "the bad inputs are not here; SIGHTLINE_DATA names the folder that holds badinputs"
        )
    return folder


def refusal(path: Path | str, **options: int) -> str:
    """The text of the refusal, one line that begins with the file's name."""
    with pytest.raises(SightlineError) as caught:
        image.read(path, **options)
    text = str(caught.value)
    assert text.isprintable()
    if Path(path).name.isprintable():
        assert text.startswith(Path(path).name + ": ")
    return text


def is_image(value: Tensor) -> bool:
    has_shape = value.dtype == torch.float32 and value.ndim == 4 and value.shape[:2] == (1, 3)
    return (
        has_shape and value.is_contiguous() and 0 <= float(value.min()) <= float(value.max()) <= 1
    )


def quietly(path: Path) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return image.read(path)


def handmade_png(pixels: np.ndarray) -> bytes:
    """A PNG of H×W×C, uint8 or uint16, by the specification and without a codec."""
    height, width, channels = pixels.shape
    color = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(pixels.dtype.newbyteorder(">")).tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.dtype.itemsize, color, 0, 0, 0)
    return frame_png((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))


def frame_png(*chunks: tuple[bytes, bytes]) -> bytes:
    framed = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def noise(*shape: int, kind: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(
        0, np.iinfo(kind).max, shape, dtype=kind, endpoint=True
    )


def planes(pixels: np.ndarray) -> Tensor:
    """H×W×3 numbers in [0, 1] as 1×3×H×W."""
    return torch.tensor(np.moveaxis(pixels, -1, 0)[None], dtype=torch.float32)


def close(picture: Tensor, expected: Tensor, tolerance: float = 1e-6) -> bool:
    same_shape = picture.shape == expected.shape
    return same_shape and (picture - expected).abs().max().item() <= tolerance


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    def write(content: bytes, name: str = "picture") -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


# ── the table of bad inputs ──


def test_the_table_is_whole(bad_inputs: Path) -> None:
    assert {path.name for path in bad_inputs.iterdir()} - {
        "README.md"
    } == READ.keys() | REFUSED.keys()


@pytest.mark.parametrize("name", READ)
def test_read(bad_inputs: Path, name: str) -> None:
    picture = quietly(bad_inputs / name)
    assert is_image(picture)
    assert picture.shape[-2:] == READ[name]


@pytest.mark.parametrize("name", REFUSED)
def test_refused(bad_inputs: Path, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a refusal is the one line, nothing before it
        assert REFUSED[name] in refusal(bad_inputs / name)


@pytest.mark.parametrize(
    "name",
    ["cmyk.jpg", "exif_rotated_6.jpg", "progressive.jpg", "wrong_suffix.png", "animated.webp"],
)
def test_the_same_scene_in_the_same_colors(bad_inputs: Path, name: str) -> None:
    expected = image.read(bad_inputs / "no_suffix")
    assert (quietly(bad_inputs / name) - expected).abs().mean().item() < 0.04


def test_animation_says_so(bad_inputs: Path) -> None:
    with pytest.warns(UserWarning, match=r"^animated\.gif: 6 frames; the first is read$") as notes:
        image.read(bad_inputs / "animated.gif")
    assert [note.filename for note in notes] == [__file__]


def test_pickle_is_not_run(bad_inputs: Path) -> None:
    trace = Path(tempfile.gettempdir()) / "sightline_pickle_was_run"
    assert not trace.exists()
    refusal(bad_inputs / "pickle_with_code.pt")
    assert not trace.exists()


def test_bomb_is_not_decoded(bad_inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[object] = []
    monkeypatch.setattr(
        ImageFile.ImageFile, "load_prepare", decoded.append
    )  # where the memory is taken
    assert "over the limit" in refusal(bad_inputs / "bomb_30000x30000.png")
    assert decoded == []


# ── limits ──


def test_limit_counts_pixels(save: Callable[..., Path]) -> None:
    path = save(handmade_png(noise(6, 9, 3)))
    assert is_image(image.read(path, limit=54))
    assert (
        "9×6 = 54 pixels, over the limit of 53; sightline.read(path, limit=54) allows it"
        in refusal(path, limit=53)
    )


def test_limit_of_pillow_neither_matters_nor_changes(
    save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert is_image(image.read(save(handmade_png(noise(8, 8, 3)))))
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES) == (10, False)


def test_bomb_that_only_the_decoder_sees(save: Callable[..., Path]) -> None:
    side = (16383 - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + side + side
    assert (
        "268,402,689 pixels, over the limit of 100,000,000; sightline.read(path, limit=268402689"
        in refusal(save(b"RIFF" + struct.pack("<I", len(body)) + body))
    )


def test_out_of_memory(save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load_prepare", fail)
    assert "not enough memory" in refusal(save(handmade_png(noise(4, 4, 3))))


# ── things that are not files ──


def test_folder(tmp_path: Path) -> None:
    assert "a folder" in refusal(tmp_path)


def test_missing_names_the_nearest(tmp_path: Path, save: Callable[..., Path]) -> None:
    save(b"", "kitten.jpg")
    assert refusal(tmp_path / "kiten.jpg") == "kiten.jpg: no such file; did you mean kitten.jpg?"
    assert f"no folder {tmp_path}/none" in refusal(tmp_path / "none" / "kitten.jpg")


def test_missing_beside_an_odd_name(tmp_path: Path, save: Callable[..., Path]) -> None:
    save(b"", "a\nb.jpg")
    assert "a\\nb.jpg" in refusal(tmp_path / "ab.jpg")


def test_file_in_the_place_of_a_folder(save: Callable[..., Path]) -> None:
    assert "Not a directory" in refusal(save(b"") / "cat.jpg")


def test_dangling_link(tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to("nowhere.png")
    assert "a link to a file that does not exist" in refusal(tmp_path / "link.png")


def test_link_loop(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("b.png")
    (tmp_path / "b.png").symlink_to("a.png")
    assert "symbolic links" in refusal(tmp_path / "a.png")


def test_fifo_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    texts: list[str] = []
    reader = threading.Thread(
        target=lambda: texts.append(refusal(tmp_path / "pipe.png")), daemon=True
    )
    reader.start()
    reader.join(timeout=3)
    assert texts == ["pipe.png: a pipe, socket or device, not an image file"]


def test_socket_and_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket.png")
        assert "socket" in refusal("socket.png")
    assert "device" in refusal("/dev/zero")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_unreadable(save: Callable[..., Path]) -> None:
    path = save(handmade_png(noise(4, 4, 3)))
    path.chmod(0)
    assert "Permission denied" in refusal(path)


@pytest.mark.skipif(
    not Path("/proc/self/mem").exists(), reason="a file whose reading fails is taken from Linux"
)
def test_failing_disk() -> None:
    assert refusal("/proc/self/mem") == "mem: Input/output error"


def test_deleted_meanwhile(save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path, really_open = save(handmade_png(noise(4, 4, 3)), "cat.png"), Path.open

    def open_too_late(self: Path, mode: str) -> object:
        self.unlink()
        return really_open(self, mode)

    monkeypatch.setattr(Path, "open", open_too_late)
    assert refusal(path).startswith("cat.png: no such file")


@pytest.mark.parametrize("name", ["two\nlines.png", "tab\t.png", os.fsdecode(b"\xff.png")])
def test_odd_names(save: Callable[..., Path], name: str) -> None:
    assert is_image(image.read(save(handmade_png(noise(4, 4, 3)), name)))
    assert refusal(save(b"", name)) == f"{repr(name)[1:-1]}: an empty file"


@pytest.mark.parametrize("name", ["null\0byte.png", "lone\ud800surrogate.png", "x" * 300])
def test_impossible_names(name: str) -> None:
    refusal(name)


# ── pixels ──


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_8_bits_over_white(save: Callable[..., Path], channels: int) -> None:
    pixels = noise(5, 7, channels)
    color, alpha = (
        (pixels[..., :-1], pixels[..., -1:] / 255) if channels in (2, 4) else (pixels, 1.0)
    )
    expected = np.broadcast_to(color / 255 * alpha + 1 - alpha, (5, 7, 3))
    assert close(image.read(save(handmade_png(pixels))), planes(expected))


def test_16_bit_gray_is_scaled_and_not_clipped(save: Callable[..., Path]) -> None:
    pixels = noise(5, 7, 1, kind=np.uint16)
    assert close(
        image.read(save(handmade_png(pixels))), planes(np.repeat(pixels / 65535, 3, axis=2))
    )


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_16_bit_color(save: Callable[..., Path], channels: int) -> None:
    pixels = noise(5, 7, channels, kind=np.uint16)
    color, alpha = pixels / 65535, 1.0
    if channels != 3:
        pixels[0, :3, -1] = (0, 65535, 32768)
        color, alpha = np.split(pixels / 65535, [-1], axis=2)
    expected = np.broadcast_to(color * alpha + 1 - alpha, (5, 7, 3))
    path = save(handmade_png(pixels))
    assert close(image.read(path), planes(expected), tolerance=2 / 255)
    rgb, _, _ = decode_as_rgb(path.read_bytes(), short_side=5)
    assert np.abs(np.asarray(rgb) / 255 - expected).max() < 2 / 255


@pytest.mark.parametrize(("channels", "bits"), [(1, 2), (1, 4), (1, 8), (1, 16), (3, 8), (3, 16)])
def test_the_one_transparent_color_of_a_png(
    save: Callable[..., Path], channels: int, bits: int
) -> None:
    white = 2**bits - 1
    pixels = noise(5, 8, channels, kind=np.uint16) & white
    pixels[1, 2:5] = pixels[0, 0]
    is_transparent = (pixels == pixels[0, 0]).all(-1)
    if bits >= 8:
        packed = pixels.astype(">u2" if bits == 16 else "u1")
    else:
        bit_rows = (pixels >> np.arange(bits - 1, -1, -1)) & 1
        packed = np.packbits(bit_rows.reshape(5, -1).astype(np.uint8), axis=1)
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    color_type = {1: 0, 3: 2}[channels]
    path = save(
        frame_png(
            (b"IHDR", struct.pack(">IIBBBBB", 8, 5, bits, color_type, 0, 0, 0)),
            (b"tRNS", pixels[0, 0].astype(">u2").tobytes()),
            (b"IDAT", zlib.compress(rows)),
            (b"IEND", b""),
        )
    )
    expected = np.broadcast_to(pixels / white, (5, 8, 3)).copy()
    expected[is_transparent] = 1
    assert close(image.read(path), planes(expected), tolerance=1 / 255)
    rgb, _, _ = decode_as_rgb(path.read_bytes(), short_side=5)
    assert np.abs(np.asarray(rgb) / 255 - expected).max() < 1 / 255


@pytest.mark.parametrize("sample", ["unassalpha", "assocalpha"])
@pytest.mark.parametrize(("kind", "channels"), [(np.uint8, 2), (np.uint8, 4), (np.uint16, 4)])
def test_transparency_of_tiff(
    tmp_path: Path, kind: type, channels: int, sample: Literal["unassalpha", "assocalpha"]
) -> None:
    white = np.iinfo(kind).max
    straight = noise(5, 7, channels, kind=kind) / white
    straight[0, :3, -1] = (0, 1, 0.5)
    straight[..., -1] = 0.5 + 0.5 * straight[..., -1]
    straight[0, :1, -1] = 0
    color, alpha = np.split(straight, [-1], axis=2)
    stored = straight.copy()
    if sample == "assocalpha":
        stored[..., :-1] *= alpha
    tifffile.imwrite(
        tmp_path / "a.tif",
        (stored * white).round().astype(kind),
        photometric="rgb" if channels == 4 else "minisblack",
        planarconfig="contig",
        extrasamples=[sample],
    )
    expected = np.broadcast_to(color * alpha + 1 - alpha, (5, 7, 3))
    assert close(image.read(tmp_path / "a.tif"), planes(expected), tolerance=2.5 / 255)


@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_in_both_byte_orders(tmp_path: Path, order: str) -> None:
    pixels = noise(5, 7, 1, kind=np.uint16)
    tifffile.imwrite(tmp_path / "gray.tiff", pixels[..., 0], byteorder=order)
    assert close(image.read(tmp_path / "gray.tiff"), planes(np.repeat(pixels / 65535, 3, axis=2)))


def test_12_bit_tiff(save: Callable[..., Path]) -> None:
    white = 4095
    tags = [
        (256, 4, 2),
        (257, 4, 1),
        (258, 3, 12),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 8),
        (277, 3, 1),
        (278, 4, 1),
        (279, 4, 3),
    ]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    pixels = bytes([white >> 4, (white & 15) << 4, 0])
    path = save(
        b"II*\0"
        + struct.pack("<I", 12)
        + pixels
        + b"\0"
        + struct.pack("<H", len(tags))
        + entries
        + bytes(4)
    )
    assert image.read(path)[0, :, 0].tolist() == [[1.0, 0.0]] * 3


def test_portable_graymap_with_its_own_white(save: Callable[..., Path]) -> None:
    assert close(
        image.read(save(b"P5 2 1 1000\n" + struct.pack(">HH", 1000, 250)))[0, 0],
        torch.tensor([[1, 0.25]]),
        1e-4,
    )


def test_palette_with_transparency(tmp_path: Path) -> None:
    picture = Image.new("P", (3, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255, 10, 20, 30])
    picture.putdata([0, 1, 2])
    picture.save(tmp_path / "p.png", transparency=bytes([255, 51, 0]))
    expected = np.array([[[1, 0, 0], [0.8, 0.8, 1], [1, 1, 1]]])
    assert close(image.read(tmp_path / "p.png"), planes(expected))


def test_floats(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 35, dtype=np.float32).reshape(5, 7)
    tifffile.imwrite(tmp_path / "f.tiff", values)
    assert torch.equal(image.read(tmp_path / "f.tiff"), torch.tensor(values).expand(1, 3, 5, 7))
    tifffile.imwrite(tmp_path / "f.tiff", values * 3 - 1)
    assert "pixels in [-1, 2]; they must lie in [0, 1]" in refusal(tmp_path / "f.tiff")


def test_integers_without_a_white(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "i.tiff", noise(5, 7, kind=np.int32))
    assert "white is unknown" in refusal(tmp_path / "i.tiff")


@pytest.mark.parametrize("lossless", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int, lossless: str) -> None:
    upright: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: np.swapaxes(a, 0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2),
        8: np.rot90,
    }
    pixels, exif = noise(5, 7, 3), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "turned", lossless, exif=exif, lossless=True)
    assert close(image.read(tmp_path / "turned"), planes(upright[orientation](pixels) / 255))


def test_damaged_exif_is_no_reason(tmp_path: Path) -> None:
    pixels = noise(5, 7, 3)
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=b"Exif\0\0II*\0\xff\xff\xff")
    assert close(quietly(tmp_path / "x.png"), planes(pixels / 255))


@pytest.mark.parametrize("inverted", [True, False])
def test_cmyk(tmp_path: Path, inverted: bool) -> None:
    ink = np.broadcast_to(np.array([0, 255, 255, 51], np.uint8), (16, 16, 4))
    file = io.BytesIO()
    Image.fromarray(ink, "CMYK").save(file, "JPEG" if inverted else "TIFF", quality=100)
    (tmp_path / "ink").write_bytes(file.getvalue())
    assert close(
        image.read(tmp_path / "ink"), planes(np.full((16, 16, 3), [0.8, 0, 0])), tolerance=3 / 255
    )


# ── any bytes at all ──


def encoded(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise(24, 32, 3)).save(file, kind, **options)
    return file.getvalue()


WHOLE = [
    encoded(kind)
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000")
]
WHOLE += [
    encoded("JPEG", progressive=True),
    encoded("TIFF", compression="tiff_lzw"),
    handmade_png(noise(16, 16, 4, kind=np.uint16)),
]


@pytest.mark.parametrize("whole", WHOLE, ids=range(len(WHOLE)))
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_half_a_picture_is_refused(save: Callable[..., Path], whole: bytes, share: float) -> None:
    assert is_image(image.read(save(whole)))
    refusal(save(whole[: int(share * len(whole))]))


def reads_or_refuses(path: Path) -> bool:
    """Whether a file gives an image or is refused in one line, and nothing else happens."""
    try:
        return is_image(quietly(path))
    except SightlineError as error:
        return str(error).isprintable() and str(error).startswith(path.name)


fuzz = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@fuzz
@given(content=st.binary(max_size=200))
def test_random_bytes(save: Callable[..., Path], content: bytes) -> None:
    assert reads_or_refuses(save(content))


@fuzz
@given(header=st.sampled_from([whole[:40] for whole in WHOLE]), body=st.binary(max_size=200))
def test_random_bytes_behind_a_header(
    save: Callable[..., Path], header: bytes, body: bytes
) -> None:
    assert reads_or_refuses(save(header + body))


@settings(fuzz, max_examples=100)
@given(whole=st.sampled_from(WHOLE), data=st.data())
def test_cut_and_corrupted(save: Callable[..., Path], whole: bytes, data: st.DataObject) -> None:
    content = bytearray(whole)
    for position in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=6)):
        content[position] = data.draw(st.integers(0, 255))
    assert reads_or_refuses(save(bytes(content[: data.draw(st.integers(0, len(whole)))])))


# ── writing ──


@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 3, 5, 7)])
def test_png_comes_back_to_half_a_step(tmp_path: Path, shape: tuple[int, ...]) -> None:
    picture = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    image.write(picture, tmp_path / "new" / "folder" / "x.PNG")
    assert close(
        image.read(tmp_path / "new" / "folder" / "x.PNG"),
        picture.reshape(1, 3, 5, 7),
        tolerance=1 / 510 + 1e-6,
    )
    assert (tmp_path / "new" / "folder" / "x.PNG").read_bytes() == image.encode_png(picture)


@pytest.mark.parametrize(
    ("suffix", "magic"), [(".jpg", b"\xff\xd8"), (".jpeg", b"\xff\xd8"), (".webp", b"RIFF")]
)
def test_lossy_formats(tmp_path: Path, suffix: str, magic: bytes) -> None:
    picture = image.sample("coffee")[..., :64, :64]
    image.write(picture, tmp_path / f"x{suffix}")
    assert (tmp_path / f"x{suffix}").read_bytes().startswith(magic)
    assert (image.read(tmp_path / f"x{suffix}") - picture).abs().mean().item() < 0.02


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (torch.full((3, 4, 4), 1.01), "this tensor is (1, 3, 4, 4) in [1.01, 1.01]"),
        (torch.full((3, 4, 4), torch.nan), "with NaN"),
        (torch.rand(2, 3, 4, 4), "this batch has 2"),
        (torch.rand(1, 4, 4), "N×3×H×W"),
        (torch.zeros(3, 1, 20000), "can't be written as WEBP"),
    ],
)
def test_what_is_not_written(tmp_path: Path, picture: Tensor, reason: str) -> None:
    with pytest.raises(SightlineError) as caught:
        image.write(picture, tmp_path / "x.webp")
    assert reason in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_rounding_noise_is_written() -> None:
    assert image.encode_png(torch.full((3, 4, 4), 1.0009)) == image.encode_png(torch.ones(3, 4, 4))
    assert image.encode_png(torch.full((3, 4, 4), -0.0009)) == image.encode_png(
        torch.zeros(3, 4, 4)
    )


def test_unknown_suffix(tmp_path: Path) -> None:
    with pytest.raises(
        SightlineError, match=r"written as \.png, \.jpg, \.jpeg, \.webp, not as '\.gif'"
    ):
        image.write(torch.rand(3, 4, 4), tmp_path / "x.gif")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failing_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    (tmp_path / "x.png").write_bytes(b"before")
    really_write = Path.write_bytes

    def fail_halfway(self: Path, data: bytes) -> int:
        really_write(self, data[:10])
        raise error

    monkeypatch.setattr(Path, "write_bytes", fail_halfway)
    with pytest.raises((SightlineError, KeyboardInterrupt)):
        image.write(torch.rand(3, 4, 4), tmp_path / "x.png")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"x.png": b"before"}


@pytest.mark.parametrize(
    "name",
    ["file/x.png", "file/deeper/x.png", "folder.png", "null\0.png", "line\nbreak/../file/x.png"],
)
def test_unwritable(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(SightlineError) as caught:
        image.write(torch.rand(3, 4, 4), tmp_path / name)
    assert str(caught.value).isprintable()


# ── samples ──


def test_samples_are_installed() -> None:
    assert image.samples()[-1] == "golf_ball"
    assert {"astronaut", "coffee", "brick"} <= set(image.samples())
    assert image.sample("chelsea").shape == (1, 3, 300, 451)
    assert torch.equal(image.sample(), image.sample("golf_ball"))
    assert is_image(image.sample("brick"))
    with pytest.raises(
        SightlineError, match="no sample image named 'chelsey'; did you mean chelsea"
    ):
        image.sample("chelsey")


# ── images by name ──


def test_a_file_comes_before_a_sample_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert torch.equal(image.read_file_or_sample("brick"), image.sample("brick"))
    (tmp_path / "brick").write_bytes(handmade_png(noise(5, 7, 3)))
    assert image.read_file_or_sample("brick").shape == (1, 3, 5, 7)
    assert image.read_file_or_sample(Path("brick")).shape == (1, 3, 5, 7)


def test_a_tensor_is_checked_and_a_name_is_read() -> None:
    picture = torch.rand(2, 3, 5, 7)
    assert image.resolve_image(picture) is picture
    assert torch.equal(image.resolve_image("brick"), image.sample("brick"))
    with pytest.raises(SightlineError, match="an image is N×3×H×W"):
        image.resolve_image(picture * 2)
    with pytest.raises(SightlineError, match="brik: no such file"):
        image.resolve_image("brik")


def test_jpeg_quality_is_obeyed() -> None:
    picture = image.sample("coffee")[..., :64, :80]
    small = image.encode_jpeg(picture, quality=20)
    assert len(small) < len(image.encode_jpeg(picture)) < len(image.encode_jpeg(picture, 98))
    with Image.open(io.BytesIO(small)) as decoded:
        assert decoded.size == (80, 64)


def test_opacity_is_read_and_written(tmp_path: Path) -> None:
    alpha = torch.rand(1, 1, 5, 7, generator=torch.Generator().manual_seed(2))
    alpha[..., 0, 0], alpha[..., 4, 6] = 0, 1
    color = torch.rand(1, 3, 5, 7, generator=torch.Generator().manual_seed(3))
    picture = torch.cat([color, alpha], 1)
    for suffix in (".png", ".webp"):
        image.write(picture, tmp_path / f"a{suffix}")
        read = image.read_alpha(tmp_path / f"a{suffix}")
        assert read is not None
        assert close(read, alpha, 1 / 255)
    on_white = color * alpha + 1 - alpha
    assert close(image.read(tmp_path / "a.png"), on_white, 3 / 255)
    image.write(picture, tmp_path / "a.jpg")
    assert (image.read(tmp_path / "a.jpg") - on_white).abs().mean() < 0.05
    assert image.read_alpha(tmp_path / "a.jpg") is None


def test_opaque_files_and_samples_have_no_opacity(tmp_path: Path) -> None:
    picture = torch.rand(1, 3, 5, 7)
    image.write(picture, tmp_path / "rgb.png")
    image.write(torch.cat([picture, torch.ones(1, 1, 5, 7)], 1), tmp_path / "opaque.png")
    np.save(tmp_path / "bands.npy", np.zeros((4, 5, 7)))
    for source in (*tmp_path.iterdir(), "rocket"):
        assert image.read_alpha(source) is None
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(SightlineError, match=r"broken.png: "):
        image.read_alpha(tmp_path / "broken.png")


def test_opacity_of_a_color_and_of_deep_gray(tmp_path: Path) -> None:
    deep = Image.fromarray(np.array([[7, 40000], [65535, 7]], np.uint16))
    deep.save(tmp_path / "deep.png", transparency=7)
    palette = Image.new("P", (3, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255, 10, 20, 30])
    palette.putdata([0, 1, 2])
    palette.save(tmp_path / "p.png", transparency=bytes([255, 51, 0]))
    expected = {"deep.png": [[0, 1], [1, 0]], "p.png": [[1, 0.2, 0]]}
    for name, alpha in expected.items():
        read = image.read_alpha(tmp_path / name)
        assert read is not None
        assert close(read[0, 0], torch.tensor(alpha, dtype=torch.float32))


def test_a_parameter_takes_so_many_bands(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((5, 7, 9)))
    assert image.resolve_image(tmp_path / "a.npy", 5).shape == (1, 5, 7, 9)
    for read in (image.resolve_image, image.read_picture):
        with pytest.raises(SightlineError, match=r"N×3×H×W in \[0, 1\]; a.npy is \(1, 5, 7, 9\)"):
            read(tmp_path / "a.npy")


def test_files_of_one_size_are_a_batch(tmp_path: Path) -> None:
    images = [smooth(side=24, seed=seed)[..., :18] for seed in (0, 1)]
    paths = [tmp_path / f"{number}.png" for number in (0, 1)]
    for single, path in zip(images, paths, strict=True):
        image.write(single, path)
    batch = image.read(paths)
    assert torch.equal(batch, torch.cat([image.read(path) for path in paths]))
    assert torch.equal(image.read(tuple(map(str, paths))), batch)
    image.write(smooth(side=20), paths[1])
    with pytest.raises(SightlineError, match=r"1\.png: 3×20×20, and 0\.png is 3×24×18"):
        image.read(paths)
    with pytest.raises(SightlineError, match="the list of pictures is empty"):
        image.read([])


@pytest.mark.parametrize(
    "path", [None, 5, b"a.png", io.BytesIO(b"a"), {}, torch.zeros(1), ["a", 5]]
)
def test_what_is_no_path_is_one_line(path: Any) -> None:
    with pytest.raises(SightlineError) as caught:
        image.read(path)
    assert "\n" not in str(caught.value)
