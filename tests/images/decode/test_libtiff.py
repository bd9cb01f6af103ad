"""libtiff writes nothing to the terminal: what is wrong with a TIFF file is one line of ours."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sightline as sl
from sightline.images.decode.libtiff import find_libtiff


def make_damaged_tiff(compression: str) -> bytes:
    """A compressed TIFF file with bytes in its middle that no encoder writes."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "TIFF", compression=compression)
    content = bytearray(buffer.getvalue())
    middle = len(content) // 3
    content[middle : middle + 200] = b"\xff" * 200
    return bytes(content)


@pytest.mark.skipif(find_libtiff() is None, reason="this Pillow does not bring libtiff as a file")
@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate"])
def test_a_damaged_tiff_is_one_line(
    compression: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "wide.tif"
    path.write_bytes(make_damaged_tiff(compression))
    with pytest.raises(sl.SightlineError, match=r"wide\.tif: a truncated, broken"):
        sl.read(path)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
