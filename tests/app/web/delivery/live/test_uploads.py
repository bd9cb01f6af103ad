"""Images that are sent: decoded as a scan decodes them, by names that can't be guessed."""

import os
from pathlib import Path

import pytest
import torch
from helpers import DATA, smooth

import sightline as sl
from sightline.app.web.delivery.live import uploads as uploads_file
from sightline.app.web.delivery.live.uploads import UploadShelf
from sightline.data.store.reader import Scan
from sightline.errors import SightlineError


@pytest.fixture
def shelf() -> UploadShelf:
    return UploadShelf(size=(32, 32), short_side=32, channels=3)


def read_bytes(image: torch.Tensor, tmp_path: Path, name: str = "a.png") -> bytes:
    sl.write(image, tmp_path / name)
    return (tmp_path / name).read_bytes()


def test_an_image_is_what_the_scan_sees(shelf: UploadShelf, web_scan: Scan) -> None:
    content = Path(web_scan.paths[4]).read_bytes()
    upload = shelf.add(content)
    torch.testing.assert_close(upload.image, web_scan.image(4))
    assert (upload.height, upload.width) == (40, 40)
    assert shelf.get(upload.name) is upload


def test_names_differ_and_the_oldest_is_forgotten(
    shelf: UploadShelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads_file, "MAX_UPLOADS", 2)
    content = read_bytes(smooth(side=40), tmp_path)
    names = [shelf.add(content).name for _ in range(2)]
    shelf.get(names[0])
    names.append(shelf.add(content).name)
    assert len(set(names)) == 3
    shelf.get(names[0])
    with pytest.raises(SightlineError, match="send it again"):
        shelf.get(names[1])


def test_other_channels_are_refused(shelf: UploadShelf, tmp_path: Path) -> None:
    import numpy as np

    np.save(tmp_path / "a.npy", np.zeros((40, 50, 5), np.float32))
    with pytest.raises(SightlineError, match="5 channels; the network takes 3"):
        shelf.add((tmp_path / "a.npy").read_bytes())


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"<svg/>", b"\x00" * 99])
def test_what_is_no_picture_is_one_line(shelf: UploadShelf, content: bytes) -> None:
    with pytest.raises(SightlineError) as error:
        shelf.add(content)
    assert "\n" not in str(error.value)


BAD_INPUTS = sorted((DATA / "badinputs").glob("*")) if (DATA / "badinputs").is_dir() else []


@pytest.mark.skipif(not BAD_INPUTS, reason=f"no broken pictures in {DATA / 'badinputs'}")
def test_broken_pictures_are_one_line_and_never_written(
    shelf: UploadShelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for path in BAD_INPUTS:
        if not path.is_file() or os.path.getsize(path) > 32_000_000:
            continue
        reason = ""
        try:
            assert shelf.add(path.read_bytes()).image.shape == (1, 3, 32, 32)
        except SightlineError as error:
            reason = str(error)
        assert "\n" not in reason
    assert list(tmp_path.iterdir()) == []
