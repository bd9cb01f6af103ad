"""What below a folder is an image, and what a folder's name tells."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lancedb
import pyarrow as pa
import pytest

from sightline.data.datasets.folders import (
    find_image_files,
    infer_folder_classes,
    is_store_or_table,
)


def test_hidden_files_and_companions_are_left_out(tmp_path: Path) -> None:
    image_names = ("a.png", "sub/b.JPG", "sub/no_suffix")
    ignored = (".c.png", ".hidden/d.png", "sub/e.TXT", "f.npy")
    for name in (*image_names, *ignored):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "linked").symlink_to(tmp_path / "sub")
    paths = find_image_files(str(tmp_path))
    names = [str(Path(path).relative_to(tmp_path)) for path in paths]
    assert sorted(names) == sorted(image_names)


def test_arrays_are_images_where_no_other_files_are(tmp_path: Path) -> None:
    for name in ("a.npy", "sub/b.NPY", "c.npz", "d.json", ".e.npy"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    names = [str(Path(path).relative_to(tmp_path)) for path in find_image_files(str(tmp_path))]
    assert sorted(names) == ["a.npy", "sub/b.NPY"]
    (tmp_path / "sub" / "f.png").touch()
    names = [str(Path(path).relative_to(tmp_path)) for path in find_image_files(str(tmp_path))]
    assert names == ["sub/f.png"]


def test_folders_are_classes_only_if_every_image_lies_in_one() -> None:
    nested = ["/photos/b/x.png", "/photos/a/deep/y.png"]
    assert infer_folder_classes("/photos", nested) == ["b", "a"]
    assert infer_folder_classes("/photos", [*nested, "/photos/z.png"]) == [None] * 3


def test_stores_and_tables_are_known_by_what_they_hold(tmp_path: Path) -> None:
    for name in ("named.scan", "named.lance", "made", "begun", "other", "undescribed"):
        (tmp_path / name).mkdir()
    (tmp_path / "named.scan" / "a.png").touch()
    (tmp_path / "named.lance" / "b.png").touch()
    content = json.dumps({"format": "sightline scan", "version": 1}, indent=1)
    (tmp_path / "made" / "scan.json").write_text(content, encoding="utf-8")
    (tmp_path / "other" / "scan.json").write_text('{"format": "a scanner"}', encoding="utf-8")
    (tmp_path / "begun" / "lock").touch()
    for name in ("images", "errors"):
        lancedb.connect(tmp_path / "undescribed").create_table(name, pa.table({"id": [1]}))
    lancedb.connect(tmp_path).create_table("rows", pa.table({"id": [1]}))
    stores = {"made", "begun", "undescribed", "rows.lance"}
    assert {path.name for path in tmp_path.iterdir() if is_store_or_table(str(path))} == stores
    names = [os.path.basename(path) for path in find_image_files(str(tmp_path))]
    assert sorted(names) == ["a.png", "b.png"]


def test_a_folder_that_cannot_be_listed_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").touch()
    scandir = os.scandir

    def refuse(path: Any) -> Iterator[os.DirEntry[str]]:
        if os.path.basename(path) == "bee":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    paths = sorted(find_image_files(str(tmp_path)))
    assert paths == [str(tmp_path / "ant" / "a.png"), f"{tmp_path}/bee/"]
    assert infer_folder_classes(str(tmp_path), paths) == ["ant", "bee"]
