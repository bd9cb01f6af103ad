"""Files that are no pictures, or claim to be large: refused in one line, before they are read."""

import io
import os
import socket
import struct
import threading
import time
import tracemalloc
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sightline as sl
from sightline.data.datasets.files import Files, hash_source
from sightline.data.datasets.open import open_dataset
from sightline.images.decode import pixels, source
from sightline.images.decode.center_crop import fit_center_crop
from sightline.images.decode.memory import MemoryBudget
from sightline.images.decode.picture import open_picture
from sightline.images.decode.pixels import convert_pillow_to_tensor, convert_to_rgb

CLAIMED_SIDES = (9_999, 30_000)
HEIGHT, WIDTH = 47, 61


@contextmanager
def refused_in_one_line(*words: str) -> Iterator[None]:
    """Expects a SightlineError of one line that contains all the words."""
    with pytest.raises(sl.SightlineError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@contextmanager
def limited_memory(byte_count: int) -> Iterator[None]:
    """Expects Python and numpy to allocate no more than this in the block."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < byte_count
    finally:
        tracemalloc.stop()


# ── what is no regular file ──


def make_folder(path: Path) -> None:
    path.mkdir()


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    socket.socket(socket.AF_UNIX).bind(str(path))


def make_device_link(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_loop(path: Path) -> None:
    path.symlink_to(path)


def make_dangling_link(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


KINDS: list[Callable[[Path], None]] = [
    make_folder,
    make_pipe,
    make_socket,
    make_device_link,
    make_loop,
    make_dangling_link,
]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_only_regular_files_are_read(
    make: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    path = Path("picture.png")
    make(path)
    with refused_in_one_line("picture.png"):
        sl.read(path)
    if make is not make_folder:
        with refused_in_one_line("picture.png"):
            open_dataset(str(path))
    with pytest.raises((sl.SightlineError, OSError)):
        Files("source", [str(path)], [None]).read_image(0)


@pytest.mark.parametrize("suffix", [".txt", ".tar", ".parquet", ""])
def test_a_pipe_or_device_is_no_dataset(suffix: str, tmp_path: Path) -> None:
    for make in (make_pipe, make_device_link):
        path = tmp_path / f"{make.__name__}{suffix}"
        make(path)
        with refused_in_one_line(path.name):
            open_dataset(str(path))


# ── files too large to be pictures ──

SIGNATURES = {
    "mp4": b"\0\0\0\x20ftypisom",
    "matroska": b"\x1a\x45\xdf\xa3",
    "avi": b"RIFF\0\0\0\0AVI ",
    "zeros": bytes(64),
    "elf": b"\x7fELF",
    "jpeg": b"\xff\xd8\xff\xe0",
    "png": b"\x89PNG\r\n\x1a\n",
    "webp": b"RIFF\0\0\0\0WEBPVP8 ",
    "tiff": b"II*\0",
}


@pytest.mark.parametrize("kind", SIGNATURES)
def test_a_huge_file_is_refused_before_it_is_read(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.write(SIGNATURES[kind])
        file.truncate(1_500_000_000)
    with limited_memory(2_000_000):
        with refused_in_one_line("huge"):
            sl.read(path)
        with refused_in_one_line():
            Files("source", [str(path)], [None]).read_image(0)
        if kind not in ("jpeg", "png"):
            with refused_in_one_line("huge"):
                open_dataset(str(path))


def test_a_large_picture_is_decoded_from_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "photo.png"
    encode_noise().save(path)
    whole = Files("source", [str(path)], [None]).read_image(0)
    monkeypatch.setattr(source, "MAX_WHOLE_FILE_BYTES", 100)
    large = Files("source", [str(path)], [None]).read_image(0)
    assert isinstance(whole, bytes)
    assert large == path
    assert hash_source(large) == hash_source(whole)
    assert np.array_equal(
        fit_center_crop(large, 24, 32).pixels, fit_center_crop(whole, 24, 32).pixels
    )


def test_what_is_packed_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    data = io.BytesIO(b"before" + SIGNATURES["png"] + bytes(100) + b"after")
    data.seek(6)
    assert source.read_packed_picture(data, 108) == SIGNATURES["png"] + bytes(100)
    data.seek(6)
    monkeypatch.setattr(source, "MAX_PACKED_BYTES", 100)
    with refused_in_one_line("over the limit"):
        source.read_packed_picture(data, 108)


# ── headers that claim a large picture ──


def claim_png(side: int, depth: int = 8, color: int = 6) -> bytes:
    """A PNG whose header claims side×side, with a few bytes of pixels."""

    def pack_chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", side, side, depth, color, 0, 0, 0)
    content = pack_chunk(b"IHDR", header) + pack_chunk(b"IDAT", zlib.compress(bytes(1000)))
    return SIGNATURES["png"] + content + pack_chunk(b"IEND", b"")


def claim_deep_png(side: int) -> bytes:
    return claim_png(side, depth=16, color=0)


def claim_bmp(side: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 1000, 0, 0, 54) + header + bytes(1000)


def claim_ppm(side: int) -> bytes:
    return b"P6\n%d %d\n255\n" % (side, side) + bytes(1000)


def claim_jpeg(side: int) -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (64, 64), (9, 8, 7)).save(encoded, "JPEG")
    data = bytearray(encoded.getvalue())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    return bytes(data[: len(data) // 2])


def claim_tiff(side: int) -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (64, 64), (9, 8, 7)).save(encoded, "TIFF")
    data = bytearray(encoded.getvalue())
    for tag in (256, 257):
        entry = data.index(struct.pack("<HHI", tag, 4, 1))
        data[entry + 8 : entry + 12] = struct.pack("<I", side)
    return bytes(data)


CLAIMS: list[Callable[[int], bytes]] = [
    claim_png,
    claim_deep_png,
    claim_bmp,
    claim_ppm,
    claim_jpeg,
    claim_tiff,
]


@pytest.mark.parametrize("side", CLAIMED_SIDES)
@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
def test_a_header_that_claims_too_much_is_refused(
    claim: Callable[[int], bytes], side: int, tmp_path: Path
) -> None:
    path = tmp_path / "claim"
    path.write_bytes(claim(side))
    started = time.monotonic()
    with warnings.catch_warnings(), limited_memory(20_000_000):
        warnings.simplefilter("ignore")  # of the TIFF reader
        with refused_in_one_line("claim"):
            sl.read(path)
        with refused_in_one_line():
            fit_center_crop(path.read_bytes(), 32, 32)
    assert time.monotonic() - started < 5


# ── pixels in bands ──


def encode_noise() -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return Image.fromarray(values)


def make_picture(mode: str) -> Image.Image:
    """A picture of a mode, asymmetric, with transparency where the mode has it."""
    noise = encode_noise()
    if mode == "I;16":
        gray = np.asarray(noise)[..., 0].astype(np.uint16) * 250 + 3
        return Image.fromarray(gray)
    if mode == "F":
        return Image.fromarray(np.asarray(noise)[..., 1].astype(np.float32) / 255)
    if mode in ("RGBA", "LA"):
        alpha = noise.getchannel(2)
        picture = noise.convert(mode)
        picture.putalpha(alpha)
        return picture
    if mode == "P":
        picture = noise.quantize(16)
        picture.info["transparency"] = 3
        return picture
    return noise.convert(mode)


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "RGBA", "LA", "P", "CMYK", "I;16", "F"])
def test_bands_are_the_whole_picture(mode: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = convert_pillow_to_tensor(make_picture(mode))
    whole_rgb = np.asarray(convert_to_rgb(make_picture(mode)))
    monkeypatch.setattr(pixels, "BAND_PIXELS", rows * WIDTH)
    assert whole.shape == (1, 3, HEIGHT, WIDTH)
    assert torch.equal(convert_pillow_to_tensor(make_picture(mode)), whole)
    assert np.array_equal(np.asarray(convert_to_rgb(make_picture(mode))), whole_rgb)


# ── the budget of bytes ──


def test_threads_share_the_budget() -> None:
    budget = MemoryBudget(100)
    lock = threading.Lock()
    held: list[int] = []
    most = 0

    def hold(byte_count: int) -> None:
        nonlocal most
        with budget.reserve_bytes(byte_count):
            with lock:
                held.append(byte_count)
                most = max(most, sum(held))
            time.sleep(0.005)
            with lock:
                held.remove(byte_count)

    threads = [threading.Thread(target=hold, args=(size,)) for size in (30, 60, 45, 20, 99, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert 60 <= most <= 100
    assert budget.free_bytes == 100


def test_more_than_the_budget_runs_alone_and_gives_it_back() -> None:
    budget = MemoryBudget(10)
    with budget.reserve_bytes(1000):
        assert budget.free_bytes == 0
    assert budget.free_bytes == 10


def test_a_picture_holds_its_bytes_while_it_is_used() -> None:
    encoded = io.BytesIO()
    encode_noise().save(encoded, "PNG")
    encoded.seek(0)
    budget = MemoryBudget(10_000_000)
    with open_picture(encoded, budget=budget) as decoded:
        held = budget.total_bytes - budget.free_bytes
        assert held >= decoded.picture.width * decoded.picture.height * 4
    assert budget.free_bytes == budget.total_bytes
    broken = io.BytesIO(encoded.getvalue()[:300])
    with refused_in_one_line("truncated"), open_picture(broken, budget=budget):
        pass
    assert budget.free_bytes == budget.total_bytes
