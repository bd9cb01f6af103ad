"""Tar archives: members that are images, and their classes."""

import io
import tarfile
from pathlib import Path

from sightline.data.datasets.tar import Tar


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_members_and_their_classes(tmp_path: Path) -> None:
    members = {
        "./ant/1.png": b"GIF89a first",
        "ant/.hidden.png": b"hidden",
        "ant/2.json": b"{}",
        "ant/3.png": b"GIF89a second one",
        "ant/3.cls": b" wasp\n",
        "4.png": b"GIF89a",
    }
    write_tar(tmp_path / "a.tar", members)
    write_tar(tmp_path / "b.tar", {"bee/deep/5.png": b"GIF89a last"})
    dataset = Tar([str(tmp_path / "a.tar"), str(tmp_path / "b.tar")])
    assert dataset.source == f"{tmp_path}/*.tar"
    images = [dataset.read_image(position) for position in range(len(dataset))]
    assert images == [b"GIF89a first", b"GIF89a second one", b"GIF89a", b"GIF89a last"]
    assert dataset.class_names == ("ant", "bee", "wasp")
    assert dataset.labels == [0, 2, -1, 1]
    assert dataset.get_path(3) == f"{tmp_path}/b.tar/bee/deep/5.png"
