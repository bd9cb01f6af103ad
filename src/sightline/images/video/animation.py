"""Frames as a GIF or an animated WebP, written one by one."""

import io
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from PIL import Image
from PIL.GifImagePlugin import getdata

from sightline.images.video.properties import VideoProperties

# Bits of the headers of an animated WebP and of its frames.
ANIMATION_FLAG = 0x02
NO_BLENDING_FLAG = 0x02


def has_gif_trailer(file: IO[bytes]) -> bool:
    """Whether a GIF goes on to its end; Pillow takes a file that ends between frames for whole.

    Follows GIF89a, sections 18 to 27. Leaves the file at its beginning.
    """
    file.seek(10)
    flags = file.read(3)[:1]
    _skip_color_table(file, flags)
    while (introducer := file.read(1)) not in (b"", b";"):
        if introducer == b",":
            flags = file.read(9)[8:]
            _skip_color_table(file, flags)
            file.seek(1, os.SEEK_CUR)  # the code size
            _skip_data_blocks(file)
        elif introducer == b"!":
            file.seek(1, os.SEEK_CUR)  # the kind of extension
            _skip_data_blocks(file)
    file.seek(0)
    return introducer == b";"


def _skip_color_table(file: IO[bytes], flags: bytes) -> None:
    """Skips the color table that follows, if the flags, one byte, announce one."""
    if flags and flags[0] & 0x80:
        file.seek(3 * 2 ** ((flags[0] & 7) + 1), os.SEEK_CUR)


def _skip_data_blocks(file: IO[bytes]) -> None:
    """Skips blocks up to the empty one, each after a byte with its length."""
    while length := file.read(1).strip(b"\0"):
        file.seek(length[0], os.SEEK_CUR)


def encode_gif(pixels: Iterable[Any], path: Path, properties: VideoProperties) -> None:
    """Writes a GIF frame by frame (GIF89a specification, sections 17 to 27).

    Pillow's own writer holds all frames in memory, and merges equal ones.
    """
    with path.open("wb") as file:
        for number, frame in enumerate(pixels):
            picture = Image.fromarray(frame).quantize(256)
            if number == 0:
                # Each frame has its own palette: there is no global one.
                file.write(b"GIF89a" + struct.pack("<HHBBB", *picture.size, 0x70, 0, 0))
                if properties.loop_count is not None:
                    loop_block = struct.pack("<BBHB", 3, 1, properties.loop_count, 0)
                    file.write(b"!\xff\x0bNETSCAPE2.0" + loop_block)
            duration = _choose_duration(number, properties)
            blocks = getdata(picture, duration=duration, disposal=1, include_color_table=True)
            file.write(b"".join(blocks))
        file.write(b";")


def encode_webp(pixels: Iterable[Any], path: Path, properties: VideoProperties) -> None:
    """Writes an animated WebP frame by frame (RFC 9649, 2.7.1), for the reasons of a GIF."""
    # In a WebP, 1 is once.
    loop_count = 1 if properties.loop_count is None else properties.loop_count
    with path.open("wb") as file:
        file.write(b"RIFF" + bytes(4) + b"WEBP")
        for number, frame in enumerate(pixels):
            height, width = frame.shape[:2]
            size = _pack_24_bits(width - 1) + _pack_24_bits(height - 1)
            if number == 0:
                file.write(_pack_chunk(b"VP8X", bytes([ANIMATION_FLAG, 0, 0, 0]) + size))
                file.write(_pack_chunk(b"ANIM", struct.pack("<IH", 0, loop_count)))
            still = io.BytesIO()
            Image.fromarray(frame).save(still, "WEBP", quality=85)
            position = bytes(6)
            duration = _pack_24_bits(_choose_duration(number, properties))
            header = position + size + duration + bytes([NO_BLENDING_FLAG])
            # A still picture is its file header of 12 bytes, and a chunk with the pixels.
            file.write(_pack_chunk(b"ANMF", header + still.getvalue()[12:]))
        content_size = file.tell() - 8
        file.seek(4)
        file.write(struct.pack("<I", content_size))


def _pack_chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def _pack_24_bits(number: int) -> bytes:
    return number.to_bytes(3, "little")


def _choose_duration(number: int, properties: VideoProperties) -> int:
    """The milliseconds that a frame is shown.

    By a frame rate they are in whole hundredths of a second, as GIF stores them, rounded in such a
    way that the sum stays within half of one.
    """
    if number < len(properties.durations):
        return properties.durations[number]
    start = round(100 * number / properties.frame_rate)
    end = round(100 * (number + 1) / properties.frame_rate)
    return 10 * (end - start)
