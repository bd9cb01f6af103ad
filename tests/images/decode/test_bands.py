"""Images of any number of bands equal the arrays that they were written from, to the bit."""

import io
import struct
import time
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import sightline as sl
from sightline.errors import SightlineError
from sightline.images.decode.bands import find_band_axis, holds_bands, read_bands
from sightline.images.decode.center_crop import encode_thumbnail, fit_center_crop, stack_crops
from sightline.images.decode.memory import MemoryBudget
from sightline.models.model import Model

WHITES = {"uint8": 255, "uint16": 65535, "float32": 1, "float64": 1, "float16": 1}


@contextmanager
def refused_in_one_line(*words: str) -> Generator[None, None, None]:
    """Expects a SightlineError of one line that has all words."""
    with pytest.raises(SightlineError) as refusal:
        yield
    message = str(refusal.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def make_bands(bands: int, kind: str, height: int = 19, width: int = 31) -> np.ndarray[Any, Any]:
    """Random bands C×H×W; the lowest and highest values are among them."""
    values = np.random.default_rng(bands).random((bands, height, width))
    values.flat[0], values.flat[-1] = 0, 1
    if kind.startswith("float"):
        return values.astype(kind)
    return (values * WHITES[kind]).round().astype(kind)


def expect(values: np.ndarray[Any, Any]) -> torch.Tensor:
    """1×C×H×W of bands C×H×W, divided in float32."""
    white = np.float32(WHITES[values.dtype.name])
    return torch.from_numpy(values.astype(np.float32) / white)[None]


# ── arrays ──


@pytest.mark.parametrize("kind", list(WHITES))
@pytest.mark.parametrize("bands", [2, 3, 4, 5, 13])
@pytest.mark.parametrize("layout", ["C×H×W", "H×W×C", "1×C×H×W", "Fortran", "big-endian"])
def test_arrays_are_read_to_the_bit(tmp_path: Path, kind: str, bands: int, layout: str) -> None:
    values = make_bands(bands, kind)
    written = {
        "H×W×C": values.transpose(1, 2, 0),
        "1×C×H×W": values[None],
        "Fortran": np.asfortranarray(values),
        "big-endian": values.astype(values.dtype.newbyteorder(">")),
    }.get(layout, values)
    np.save(tmp_path / "a.npy", written)
    assert torch.equal(sl.read(tmp_path / "a.npy"), expect(values))


def test_one_band_is_gray(tmp_path: Path) -> None:
    values = make_bands(1, "uint16")
    for number, written in enumerate((values[0], values, values.transpose(1, 2, 0))):
        np.save(tmp_path / f"{number}.npy", written)
        image = sl.read(tmp_path / f"{number}.npy")
        assert torch.equal(image, expect(values).expand(1, 3, -1, -1))
    np.save(tmp_path / "mask.npy", values[0] > 999)
    assert torch.equal(sl.read(tmp_path / "mask.npy")[0, 2] > 0.5, torch.tensor(values[0] > 999))


def test_the_content_decides_and_not_the_suffix(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", make_bands(5, "uint8"))
    (tmp_path / "a.npy").rename(tmp_path / "a.tif")
    assert sl.read(tmp_path / "a.tif").shape == (1, 5, 19, 31)


def write_header(shape: str, kind: str = "|u1", version: int = 1) -> bytes:
    header = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}"
    padded = header.encode().ljust(117) + b"\n"
    length = struct.pack("<H" if version == 1 else "<I", len(padded))
    return b"\x93NUMPY" + bytes([version, 0]) + length + padded


REFUSED_ARRAYS = {
    "claims": (write_header("(5, 1000000, 1000000)"), "over the limit of 100,000,000 pixels"),
    "claims many": (write_header("(1000000000000,)"), "an image is H×W, H×W×C or C×H×W"),
    "many bands": (write_header("(900, 1000, 1001)"), "limit=225225000"),
    "truncated": (write_header("(5, 40, 60)") + bytes(11999), "12,000 bytes, 11,999 follow"),
    "negative": (write_header("(-5, 40, 60)"), "an image is"),
    "empty": (write_header("(0, 40, 60)"), "an image is"),
    "version": (write_header("(4, 40, 60)", version=9), "version 9.0"),
    "no header": (b"\x93NUMPY\x01\x00\xff\xff{", "broken"),
    "code": (write_header("__import__('os').getcwd()"), "broken"),
    "objects": (write_header("(4, 4)", "|O"), "an array of Python objects"),
    "int32": (write_header("(5, 40, 60)", "<i4"), "pixels of int32, whose white is unknown"),
    "int16": (write_header("(5, 40, 60)", "<i2"), "pixels of int16, whose white is unknown"),
    "complex": (write_header("(5, 40, 60)", "<c8"), "an array of complex64"),
    "text": (write_header("(5, 40, 60)", "<U3"), "an array of <U3"),
    "cube": (write_header("(40, 40, 40)"), "bands can't be told from rows and columns"),
    "four axes": (write_header("(2, 3, 40, 60)"), "an image is H×W, H×W×C or C×H×W"),
}


@pytest.mark.parametrize("name", list(REFUSED_ARRAYS))
def test_other_arrays_are_one_line(tmp_path: Path, name: str) -> None:
    data, reason = REFUSED_ARRAYS[name]
    path = tmp_path / "claim.npy"
    path.write_bytes(data)
    started = time.monotonic()
    with refused_in_one_line("claim.npy", reason):
        sl.read(path)
    with refused_in_one_line(reason):
        fit_center_crop(data, 16, 16)
    assert time.monotonic() - started < 2


def test_pickles_are_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "run"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (marker,)

    np.save(tmp_path / "a.npy", np.array([Payload(), 1], object), allow_pickle=True)
    with refused_in_one_line("a.npy", "H×W"):
        sl.read(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", np.full((5, 6), Payload(), object), allow_pickle=True)
    with refused_in_one_line("b.npy", "Python objects"):
        sl.read(tmp_path / "b.npy")
    assert not marker.exists()


@pytest.mark.parametrize(("value", "reason"), [(np.nan, "NaN"), (1.5, "[0, 1.5]"), (-2, "[-2, 1]")])
@pytest.mark.parametrize("suffix", [".npy", ".tif"])
def test_floats_beyond_black_and_white(
    tmp_path: Path, value: float, reason: str, suffix: str
) -> None:
    values = make_bands(5, "float32")
    values[3, 4, 5] = value
    path = tmp_path / f"a{suffix}"
    write = {".npy": np.save, ".tif": tifffile.imwrite}[suffix]
    write(path, values)
    with refused_in_one_line(path.name, reason):
        sl.read(path)


def test_a_limit_of_ones_own(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", make_bands(13, "uint8"))
    with refused_in_one_line("13 bands of 19×31 = 7,657 values", "limit=1915"):
        sl.read(tmp_path / "a.npy", limit=1914)
    assert sl.read(tmp_path / "a.npy", limit=1915).shape == (1, 13, 19, 31)


def test_the_axis_of_the_bands() -> None:
    assert find_band_axis((5, 40, 60)) == 0
    assert find_band_axis((40, 60, 5)) == 2
    assert find_band_axis((3, 4, 99)) == 0
    for shape in ((5, 40, 5), (13, 10, 10), (60, 5, 40)):
        with pytest.raises(SightlineError, match="1×C×H×W"):
            find_band_axis(shape)


# ── TIFF ──


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("bands", [2, 3, 4, 5, 13])
@pytest.mark.parametrize(
    "options",
    [
        {"planarconfig": "contig"},
        {"planarconfig": "separate"},
        {"planarconfig": "contig", "compression": "zlib"},
        {"planarconfig": "separate", "tile": (16, 16), "compression": "zlib", "predictor": True},
        {"planarconfig": "contig", "byteorder": ">", "rowsperstrip": 4},
        {"planarconfig": "contig", "bigtiff": True, "metadata": None},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_bands_of_tiff_are_read_to_the_bit(
    tmp_path: Path, kind: str, bands: int, options: dict[str, Any]
) -> None:
    if kind == "float32":
        options = {name: value for name, value in options.items() if name != "predictor"}
    values = make_bands(bands, kind)
    written = values if options["planarconfig"] == "separate" else values.transpose(1, 2, 0)
    tifffile.imwrite(tmp_path / "a.tif", written, photometric="minisblack", **options)
    assert torch.equal(sl.read(tmp_path / "a.tif"), expect(values))


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("bands", [2, 5, 13])
def test_arrays_in_pages(tmp_path: Path, kind: str, bands: int) -> None:
    values = make_bands(bands, kind)
    tifffile.imwrite(tmp_path / "a.tif", values)
    assert torch.equal(sl.read(tmp_path / "a.tif"), expect(values))
    tifffile.imwrite(tmp_path / "b.tif", values.transpose(1, 2, 0))
    assert torch.equal(sl.read(tmp_path / "b.tif"), expect(values))


def test_colors_of_more_than_8_bits_lose_nothing(tmp_path: Path) -> None:
    for kind in ("uint16", "float32"):
        values = make_bands(3, kind)
        tifffile.imwrite(tmp_path / "a.tif", values.transpose(1, 2, 0), photometric="rgb")
        assert torch.equal(sl.read(tmp_path / "a.tif"), expect(values))


def test_a_fourth_band_is_transparency_only_where_the_file_says_so(tmp_path: Path) -> None:
    values = make_bands(4, "uint8")
    written = values.transpose(1, 2, 0)
    tifffile.imwrite(tmp_path / "a.tif", written, photometric="rgb", extrasamples=["unspecified"])
    assert torch.equal(sl.read(tmp_path / "a.tif"), expect(values))
    tifffile.imwrite(tmp_path / "a.tif", written, photometric="rgb", extrasamples=["unassalpha"])
    assert sl.read(tmp_path / "a.tif").shape == (1, 3, 19, 31)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_bands_are_turned_upright(tmp_path: Path, orientation: int) -> None:
    values = make_bands(5, "uint8")
    tags = [(274, "H", 1, orientation, True)]
    path = tmp_path / "a.tif"
    written = values.transpose(1, 2, 0)
    tifffile.imwrite(path, written, photometric="minisblack", planarconfig=1, extratags=tags)
    picture = Image.fromarray(values[2])
    exif = picture.getexif()
    exif[274] = orientation
    picture.save(tmp_path / "one.tif", exif=exif)
    assert torch.equal(sl.read(path)[0, 2], sl.read(tmp_path / "one.tif")[0, 0])


def test_white_may_be_the_smallest_value(tmp_path: Path) -> None:
    values = make_bands(2, "uint8")
    tifffile.imwrite(
        tmp_path / "a.tif", values.transpose(1, 2, 0), photometric="miniswhite", planarconfig=1
    )
    assert torch.equal(sl.read(tmp_path / "a.tif"), 1 - expect(values))


def encode_tiff(**options: Any) -> bytes:
    encoded = io.BytesIO()
    values = make_bands(5, "uint8").transpose(1, 2, 0)
    tifffile.imwrite(
        encoded, values, photometric="minisblack", planarconfig=1, metadata=None, **options
    )
    return encoded.getvalue()


def claim_size(side: int) -> bytes:
    data = bytearray(encode_tiff())
    for tag in (256, 257):
        entry = data.index(struct.pack("<HHI", tag, 4, 1))
        data[entry + 8 : entry + 12] = struct.pack("<I", side)
    return bytes(data)


def make_deflate_bomb() -> bytes:
    """A file whose one strip unpacks to 200 MB in place of 3 kB."""
    packed = zlib.compress(bytes(200_000_000), 1)
    data = bytearray(encode_tiff())
    entry = data.index(struct.pack("<HHI", 259, 3, 1))
    data[entry + 8 : entry + 10] = struct.pack("<H", 8)
    offset = data.index(struct.pack("<HH", 273, 4))
    data[offset + 8 : offset + 12] = struct.pack("<I", len(data))
    count = data.index(struct.pack("<H", 279))
    kind = struct.unpack("<H", data[count + 2 : count + 4])[0]
    assert kind == 4
    data[count + 8 : count + 12] = struct.pack("<I", len(packed))
    return bytes(data) + packed


def test_broken_tiff_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    whole = encode_tiff()
    broken = {
        "over the limit": claim_size(70_000),
        "pixels are missing": claim_size(100),
        "beyond its end": whole[:-100],
        "unpack to more": make_deflate_bomb(),
    }
    for reason, data in broken.items():
        path.write_bytes(data)
        started = time.monotonic()
        with refused_in_one_line("a.tif", reason):
            sl.read(path)
        assert time.monotonic() - started < 2


def test_every_truncation_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = encode_tiff(compression="zlib")
    path = tmp_path / "a.tif"
    for length in range(8, len(data), 97):
        path.write_bytes(data[:length])
        with refused_in_one_line("a.tif"):
            sl.read(path)
    assert capsys.readouterr().err == ""


def test_a_compression_that_needs_another_package(tmp_path: Path) -> None:
    data = bytearray(encode_tiff())
    entry = data.index(struct.pack("<HHI", 259, 3, 1))
    data[entry + 8 : entry + 10] = struct.pack("<H", 5)
    (tmp_path / "a.tif").write_bytes(data)
    with refused_in_one_line("packed as LZW; save it uncompressed or with deflate"):
        sl.read(tmp_path / "a.tif")


def test_pictures_are_no_bands(tmp_path: Path) -> None:
    for mode in ("L", "RGB", "RGBA", "CMYK", "1", "LA"):
        encoded = io.BytesIO()
        Image.new(mode, (7, 5)).save(encoded, "TIFF")
        encoded.seek(0)
        assert not holds_bands(encoded)
        assert encoded.tell() == 0
    assert not holds_bands(io.BytesIO(b"II*\0" + bytes(100)))
    assert not holds_bands(io.BytesIO(b""))


# ── for scans ──


def test_memory_is_reserved_while_bands_are_read() -> None:
    reserved: list[int] = []

    class Budget(MemoryBudget):
        def reserve_bytes(self, byte_count: int) -> Any:
            reserved.append(byte_count)
            return super().reserve_bytes(byte_count)

    read_bands(io.BytesIO(encode_tiff()), 10_000, Budget(10**9))
    assert reserved == [5 * 19 * 31 * 16]


def test_the_square_of_bands_is_what_fit_makes(tmp_path: Path) -> None:
    values = make_bands(5, "uint16", 40, 64)
    np.save(tmp_path / "a.npy", values)
    net = torch.nn.Sequential(torch.nn.Conv2d(5, 4, 16), torch.nn.Flatten())
    model = Model(net, mean=[0.5] * 5, std=[0.2] * 5, size=16, resize=20)
    square = fit_center_crop(tmp_path / "a.npy", 16, 20)
    expected = model.fit(sl.read(tmp_path / "a.npy"))
    assert torch.allclose(stack_crops([square]), expected, atol=1e-6)
    assert (square.height, square.width) == (40, 64)
    assert torch.equal(stack_crops([fit_center_crop(expected, 16, 16)]), expected)

    thumbnail = np.asarray(Image.open(io.BytesIO(encode_thumbnail(square, 16, (4, 4, 4)))))
    shown = expected[0, 4].numpy() * 255
    assert abs(thumbnail.mean(2) - shown).mean() < 12
