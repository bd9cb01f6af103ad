"""Whether a picture can be in its file at all: told before any memory is taken for its pixels."""

from collections.abc import Mapping

from PIL import ImageFile

from sightline.errors import SightlineError

# Bits of a pixel in a file: the fewest of all raw forms that Pillow decodes to a mode.
FEWEST_BITS: Mapping[str, int] = {
    "1": 1,
    "L": 1,
    "P": 1,
    "LA": 8,
    "PA": 2,
    "I;16": 12,
    "RGB": 12,
    "RGBA": 16,
    "CMYK": 32,
}

# How many bytes a byte of a file can become at most. Of Deflate, and of LZW, whose codes of 12 bits
# stand for 4,096 bytes at most, by the standards. In a PackBits pair, one byte tells of 128.
DEFLATE_EXPANSION = 1032
LZW_EXPANSION = 2731
PACKBITS_EXPANSION = 64
# How much the decoders of Pillow, by their names, and the kinds of compression of a TIFF expand.
# Others have no such bound: a plain WebP, AVIF or fax of any size takes a few bytes.
EXPANSIONS: Mapping[str, int] = {
    "raw": 1,
    "ppm": 1,
    "ppm_plain": 1,
    "zip": DEFLATE_EXPANSION,
    "gif": LZW_EXPANSION,
    "tiff_adobe_deflate": DEFLATE_EXPANSION,
    "tiff_deflate": DEFLATE_EXPANSION,
    "tiff_lzw": LZW_EXPANSION,
    "packbits": PACKBITS_EXPANSION,
}
# A JPEG has at least one bit for a block of 8×8 pixels of its finest component, which others may
# surpass four times in both directions.
JPEG_PIXELS_PER_BYTE = 8 * 64 * 16


# A tile of a TIFF may have so many pixels, or so many times those of the picture.
MAX_TILE_PIXELS = 4096 * 4096
MAX_TILE_SHARE = 4
TIFF_TILE_WIDTH_TAG, TIFF_TILE_HEIGHT_TAG = 322, 323

# Their decoders stand behind one of the names above, and their plainest files are smaller yet.
UNBOUNDED_FORMATS = ("AVIF", "JPEG2000", "WEBP")


def check_claimed_size(picture: ImageFile.ImageFile, byte_count: int) -> None:
    """Raises SightlineError for an opened picture with more pixels than so many bytes can hold.

    To decode it would reserve memory for all of them before it failed. So it would for a tile much
    larger than the picture.
    """
    tile_pixels = count_tile_pixels(picture)
    if tile_pixels > max(MAX_TILE_PIXELS, MAX_TILE_SHARE * picture.width * picture.height):
        raise SightlineError(
            f"broken: its tiles have {tile_pixels:,} pixels, and the picture has "
            f"{picture.width}×{picture.height}"
        )
    fewest_bytes = count_fewest_bytes(picture)
    if byte_count < fewest_bytes:
        raise SightlineError(
            f"truncated or broken: it claims {picture.width}×{picture.height} pixels, which take "
            f"{fewest_bytes:,} bytes or more, and the file has {byte_count:,}"
        )


def count_tile_pixels(picture: ImageFile.ImageFile) -> int:
    """The pixels of a tile of an opened TIFF, which libtiff decodes as a whole; 0 without tiles."""
    tags = getattr(picture, "tag_v2", {})
    sides = (tags.get(TIFF_TILE_WIDTH_TAG, 0), tags.get(TIFF_TILE_HEIGHT_TAG, 0))
    width, height = (side if isinstance(side, int) else 0 for side in sides)
    return width * height


def count_fewest_bytes(picture: ImageFile.ImageFile) -> int:
    """The fewest bytes of an opened picture's file, by its size and kind; 0 where none are known.

    Of a GIF, the part that its first frame fills counts.
    """
    if not picture.tile or picture.format in UNBOUNDED_FORMATS:
        return 0
    pixel_count = 0
    for tile in picture.tile:
        left, top, right, bottom = tile.extents or (0, 0, *picture.size)
        pixel_count += (right - left) * (bottom - top)
    # A TIFF with its bands apart has a tile of all pixels for each.
    pixel_count = min(pixel_count, picture.width * picture.height)

    codec = picture.tile[0].codec_name
    if codec == "jpeg":
        return pixel_count // JPEG_PIXELS_PER_BYTE
    if codec == "libtiff":
        codec = str(picture.info.get("compression"))
    if codec not in EXPANSIONS:
        return 0
    # A GIF's codes stand for pixels, however few bits they have.
    bits = 8 if codec == "gif" else FEWEST_BITS.get(picture.mode, 8)
    return pixel_count * bits // (8 * EXPANSIONS[codec])
