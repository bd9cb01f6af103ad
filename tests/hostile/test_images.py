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
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import tifffile
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
from sightline.images.video import reading
from sightline.images.video.reading import read_video, read_video_properties
from sightline.images.video.writing import write_video

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


# ── files of a few bytes that take long, or much memory, to decode ──


def make_jpeg(mode: str, **options: object) -> bytes:
    """A picture of noise as a JPEG file."""
    levels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 4), np.uint8)
    content = io.BytesIO()
    Image.fromarray(levels, "CMYK").convert(mode).save(content, "JPEG", **options)
    return content.getvalue()


@pytest.mark.parametrize("count", [90, 101, 5_000])
def test_a_jpeg_has_no_more_scans_than_encoders_write(count: int, tmp_path: Path) -> None:
    """Each takes the decoder over all pixels, and a few bytes of the file."""
    whole = make_jpeg("RGB", progressive=True)
    last_scan = whole[whole.rindex(b"\xff\xda") : -2]
    repeats = count - whole.count(b"\xff\xda")
    path = tmp_path / "scans.jpg"
    path.write_bytes(whole[:-2] + last_scan * repeats + whole[-2:])
    if count <= 100:
        assert sl.read(path).shape == (1, 3, HEIGHT, WIDTH)
        return
    with refused_in_one_line("scans.jpg", f"{count:,} scans"):
        sl.read(path)
    with refused_in_one_line(f"{count:,} scans"):
        fit_center_crop(path.read_bytes(), 16)


def test_scans_of_single_components_are_counted_too(tmp_path: Path) -> None:
    """A baseline JPEG whose first scan has one component of three."""
    whole = make_jpeg("RGB")
    start = whole.index(b"\xff\xda")
    gray = make_jpeg("L")
    one_component = gray[gray.index(b"\xff\xda") : -2]
    path = tmp_path / "scans.jpg"
    path.write_bytes(whole[:start] + one_component * 300 + b"\xff\xd9")
    with refused_in_one_line("scans.jpg", "300 scans"):
        sl.read(path)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_in_one_scan_is_not_read_through(mode: str) -> None:
    content = make_jpeg(mode)

    class CountedFile(io.BytesIO):
        read_bytes = 0

        def read(self, size: int | None = -1) -> bytes:
            block = super().read(size)
            self.read_bytes += len(block)
            return block

    file = CountedFile(content + bytes(10_000_000))
    with open_picture(file) as decoded:
        assert decoded.picture.size == (WIDTH, HEIGHT)
    assert file.read_bytes < 200_000


def write_tiff(
    entries: dict[int, tuple[int, int]], pages: int = 1, content: bytes = bytes(64)
) -> bytes:
    """A TIFF file of equal pages by their tags, each with a type and value; content at its end."""
    page_bytes = 2 + 12 * len(entries) + 4
    content_offset = 8 + pages * page_bytes
    file = bytearray(b"II*\0\x08\0\0\0")
    for page in range(1, pages + 1):
        file += struct.pack("<H", len(entries))
        for tag, (kind, value) in sorted(entries.items()):
            offset = content_offset if tag in (273, 324) else value
            file += struct.pack("<HHII", tag, kind, 1, offset)
        file += struct.pack("<I", 8 + page * page_bytes if page < pages else 0)
    return bytes(file) + content


GRAY_PAGE = {256: (4, 8), 257: (4, 8), 258: (3, 8), 259: (3, 1), 262: (3, 1), 277: (3, 1)}


def test_pages_of_a_tiff_are_counted_up_to_a_number(tmp_path: Path) -> None:
    """Pillow takes ever longer for the next page: hours for as many as a small file can hold."""
    strip = {273: (4, 0), 278: (4, 8), 279: (4, 64)}
    for pages, words in ((7, "7 frames; "), (150_000, "1000 frames or more; ")):
        path = tmp_path / "pages.tif"
        path.write_bytes(write_tiff({**GRAY_PAGE, **strip}, pages))
        start = time.monotonic()
        with pytest.warns(UserWarning, match=words):
            assert sl.read(path).shape == (1, 3, 8, 8)
        assert time.monotonic() - start < 10


@pytest.mark.parametrize("compression", [1, 4, 5, 7, 8, 32773, 50000, 50001])
@pytest.mark.parametrize("side", [16, 30_000, 2**20])
def test_tiles_of_a_tiff_are_about_as_large_as_the_picture(
    side: int, compression: int, tmp_path: Path
) -> None:
    tile = {322: (4, side), 323: (4, side), 324: (4, 0), 325: (4, 64)}
    entries = {**GRAY_PAGE, 259: (3, compression), **tile}
    path = tmp_path / "tiles.tif"
    path.write_bytes(write_tiff(entries, content=zlib.compress(bytes(256)).ljust(256, b"\0")))
    if side == 16:
        with suppress(sl.SightlineError):  # as the content is that of one compression
            assert sl.read(path).shape == (1, 3, 8, 8)
        return
    for read in (sl.read, lambda path: fit_center_crop(path, 16)):
        with refused_in_one_line(f"tiles have {side**2:,} pixels, and the picture has 8×8"):
            read(path)


@pytest.mark.parametrize("kind", ["f2", "f4", "f8"])
def test_gray_floats_of_a_tiff_are_read_whatever_their_bits(kind: str, tmp_path: Path) -> None:
    levels = np.linspace(0, 1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(kind)
    tifffile.imwrite(tmp_path / "gray.tif", levels)
    image = sl.read(tmp_path / "gray.tif")
    assert image.shape == (1, 3, HEIGHT, WIDTH)
    assert (image[0, 0] - torch.from_numpy(levels.astype("f4"))).abs().max() < 1e-6


@pytest.mark.parametrize("kind", ["i1", "i2", "i4", "c8", "u4"])
def test_gray_numbers_whose_white_is_unknown_are_refused(kind: str, tmp_path: Path) -> None:
    """A signed byte below 0 would be bright."""
    levels = np.arange(-60, 60).reshape(10, 12).astype(kind)
    tifffile.imwrite(tmp_path / "gray.tif", levels)
    with refused_in_one_line("gray.tif"):
        sl.read(tmp_path / "gray.tif")


def test_frames_of_a_video_have_the_limit_of_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = [torch.rand(1, 3, 32, 48) for _ in range(3)]
    path = tmp_path / "video.mp4"
    write_video(frames, path)
    assert len(list(read_video(path))) == 3
    monkeypatch.setattr(reading, "MAX_PIXELS", 32 * 48 - 1)
    for read in (read_video_properties, lambda path: next(read_video(path))):
        with refused_in_one_line("video.mp4", "its frames are 48×32 = 1,536 pixels"):
            read(path)


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webp"])
def test_a_video_with_too_little_memory(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"video{suffix}"
    write_video([torch.rand(1, 3, 32, 48) for _ in range(2)], path)

    def lack(*_: object) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")

    monkeypatch.setattr(reading, "_convert_frame", lack)
    monkeypatch.setattr(reading, "convert_pillow_to_tensor", lack)
    with refused_in_one_line(f"video{suffix}: not enough memory"):
        next(read_video(path))


@pytest.mark.parametrize(
    ("content", "guess"),
    [
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\xff\x0a\xfa\x1f", "JPEG XL"),
        (b"8BPS\0\1", "a Photoshop document"),
        (b"%PDF-1.7\n%\xe2\xe3", "a PDF document"),
        (b"%!PS-Adobe-3.0", "PostScript"),
        (b"\0\0\1\0\3\0", "an icon"),
        (b"\x1f\x8b\x08\0", "a packed archive"),
        (b"(\xb5/\xfd\x04", "a packed archive"),
        (b"v/1\x01\2\0", "OpenEXR"),
    ],
)
def test_what_a_file_may_be_instead(content: bytes, guess: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content + bytes(range(256)))
    with refused_in_one_line("not an image", f"it looks like {guess}"):
        sl.read(tmp_path / "a.png")
