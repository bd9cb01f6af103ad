"""A file appears whole or not at all; folders that can't be written are reported beforehand."""

import os
import threading
from pathlib import Path

import pytest

from sightline.errors import SightlineError
from sightline.images import files
from sightline.images.files import (
    check_writable,
    get_cache_path,
    remove_abandoned_files,
    remove_temporary_files,
    replace_atomically,
    replace_files_together,
    write_text,
)


def names(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


def write_half(path: Path, error: BaseException) -> None:
    """Fails in the middle."""
    with replace_atomically(path) as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise error


def test_makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.txt"
    for content in ("old", "new"):
        with replace_atomically(path) as temporary:
            assert temporary.parent == path.parent
            assert temporary.suffix == ".txt"
            temporary.write_text(content, encoding="utf-8")
        assert path.read_text(encoding="utf-8") == content
    assert names(path.parent) == ["c.txt"]


@pytest.mark.parametrize(
    "error", [ZeroDivisionError(), KeyboardInterrupt(), SystemExit(3), SightlineError("no")]
)
@pytest.mark.parametrize("previous", [None, "old"])
def test_a_failing_write_leaves_what_was_there(
    error: BaseException, previous: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "c.txt"
    if previous:
        path.write_text(previous, encoding="utf-8")
    with pytest.raises(type(error)) as raised:
        write_half(path, error)
    assert raised.value is error
    assert names(tmp_path) == (["c.txt"] if previous else [])
    assert not previous or path.read_text(encoding="utf-8") == previous


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), ValueError("embedded null byte")]
)
def test_a_full_disk_is_reported_in_one_line(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(
        SightlineError,
        match=r"can't write '.*c\.txt': (No space left on device|embedded null byte)$",
    ):
        write_half(tmp_path / "c.txt", error)
    assert names(tmp_path) == []


def test_a_block_that_wrote_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SightlineError, match="can't write"), replace_atomically(tmp_path / "c.txt"):
        pass
    assert names(tmp_path) == []


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "c.txt").mkdir()
    with (
        pytest.raises(SightlineError, match="can't write"),
        replace_atomically(tmp_path / "c.txt") as temporary,
    ):
        temporary.write_text("new", encoding="utf-8")
    assert names(tmp_path) == ["c.txt"]


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(SightlineError, match=r"can't write '.*b': "),
        replace_atomically(tmp_path / "file" / "b") as temporary,
    ):
        temporary.write_text("new", encoding="utf-8")
    with pytest.raises(SightlineError, match="is not a folder"):
        check_writable(tmp_path / "file" / "b")
    with pytest.raises(SightlineError, match="is not a folder"):
        check_writable(tmp_path / "file")


def test_an_odd_name_stays_on_one_line(tmp_path: Path) -> None:
    (tmp_path / "two\nlines").touch()
    with pytest.raises(SightlineError) as raised:
        check_writable(tmp_path / "two\nlines")
    assert "\n" not in str(raised.value)


def test_checking_makes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_writable(tmp_path / "a" / "b")
    monkeypatch.chdir(tmp_path)
    check_writable(Path("a"))
    check_writable(Path())
    assert names(tmp_path) == []


@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() == 0, reason="permissions bind neither here nor root"
)
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(SightlineError, match="permission denied"):
            check_writable(tmp_path / "a")
    finally:
        tmp_path.chmod(0o700)


def test_writers_at_once_each_write_a_whole_file(tmp_path: Path) -> None:
    path, texts = tmp_path / "c.txt", [letter * 10_000 for letter in "abcdefgh"]

    def write(text: str) -> None:
        with replace_atomically(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text(encoding="utf-8") in texts
    assert names(tmp_path) == ["c.txt"]


def test_text_is_utf8_with_its_own_line_ends(tmp_path: Path) -> None:
    write_text("one\ntwo\r\né\n", tmp_path / "a" / "c.txt")
    assert (tmp_path / "a" / "c.txt").read_bytes() == b"one\ntwo\r\n\xc3\xa9\n"
    assert names(tmp_path / "a") == ["c.txt"]


def test_the_cache_is_where_xdg_says_on_every_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # As on Windows, where platformdirs does not look at the variable.
    monkeypatch.setattr(files, "user_cache_path", lambda *_, **__: Path("elsewhere"))
    assert get_cache_path("scans", "a.scan") == tmp_path / "sightline" / "scans" / "a.scan"
    assert names(tmp_path) == [], "nothing is made"


@pytest.mark.parametrize("value", [None, ""])
def test_without_xdg_the_cache_is_the_systems(
    value: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is None:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setattr(files, "user_cache_path", lambda name, **_: tmp_path / name)
    assert get_cache_path("lists", "b.txt") == tmp_path / "sightline" / "lists" / "b.txt"
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert get_cache_path("lists", "b.txt").is_absolute()


# ── what an ended process leaves ──


def test_an_end_while_saving_leaves_no_new_folder(tmp_path: Path) -> None:
    new_folder = tmp_path / "new"
    saving = replace_files_together(new_folder, "recipe.json")
    with saving as temporary:
        (temporary / "a.png").write_text("half", encoding="utf-8")
        remove_temporary_files()
        assert names(tmp_path) == []
        temporary.mkdir(parents=True)  # so that the block can end
    (tmp_path / "old").mkdir()
    with replace_files_together(tmp_path / "old", "recipe.json") as temporary:
        remove_temporary_files()
        assert names(tmp_path / "old") == []
        temporary.mkdir()
    assert names(tmp_path / "old") == []


def test_half_written_files_of_killed_processes_are_removed(tmp_path: Path) -> None:
    abandoned = (".0123456789ab.pt", ".ba9876543210")
    kept = (".0123456789ab.d", ".0123456789aB.pt", ".hidden", "0123456789ab.pt")
    for name in (*abandoned, *kept[1:]):
        (tmp_path / name).touch()
    (tmp_path / kept[0]).mkdir()
    remove_abandoned_files(tmp_path)
    assert names(tmp_path) == sorted(kept)
    remove_abandoned_files(tmp_path / "nowhere")
