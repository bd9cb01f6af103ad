"""Images in tar archives, read where they lie without unpacking anything."""

import logging
import os
import tarfile
from collections.abc import Sequence
from typing import IO, Any, NamedTuple

from sightline.data.datasets.files import hash_file_stamps, name_archives, number_classes
from sightline.data.datasets.folders import COMPANION_SUFFIXES
from sightline.data.datasets.names import make_storable_name
from sightline.errors import SightlineError, get_first_error_line
from sightline.images.decode.center_crop import ImageSource
from sightline.images.decode.source import (
    MAX_PACKED_BYTES,
    check_file_size,
    read_packed_picture,
)

NOT_IMAGE_SUFFIXES = COMPANION_SUFFIXES | {".cls"}  # members of a tar archive beside the images

# What `tarfile` raises for a damaged archive.
TAR_ERRORS = (OSError, tarfile.TarError, ValueError, OverflowError, RecursionError)

MAX_CLASS_BYTES = 1_000  # of a `.cls` file
MAX_HEADER_BYTES = 1_000_000  # of a member: long names and extended attributes

logger = logging.getLogger(__name__)


class TarMember(NamedTuple):
    """An image in an archive: the archive, its name there, and where its bytes are."""

    file: str
    name: str
    offset: int
    size: int
    problem: str = ""  # why it can't be read


class Tar:
    """Images in uncompressed tar archives, read at their offsets.

    The class of an image is the text of `NAME.cls` beside it, or its first folder in the archive.
    """

    def __init__(self, files: Sequence[str]) -> None:
        self.source = name_archives(files, ".tar")
        self.digest = hash_file_stamps(files)
        self.members: list[TarMember] = []
        classes: list[str | None] = []
        for file in files:
            for member, class_name in list_tar_images(file):
                self.members.append(member)
                classes.append(class_name)
        self.class_names, self.labels = number_classes(classes)

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, position: int) -> ImageSource:
        return self.read_image(position)

    def get_path(self, position: int) -> str:
        member = self.members[position]
        return make_storable_name(f"{member.file}/{member.name}")

    def get_label(self, position: int) -> int:
        return self.labels[position]

    def read_image(self, position: int) -> bytes:
        if not 0 <= position < len(self):
            raise IndexError(f"there is no member {position}")
        member = self.members[position]
        if member.problem:
            raise SightlineError(member.problem)
        with open(member.file, "rb") as file:
            file.seek(member.offset)
            return read_packed_picture(file, member.size)


def list_tar_images(file: str) -> list[tuple[TarMember, str | None]]:
    """The images of a tar archive with their classes. Raises SightlineError if it can't be read."""
    infos, class_of_stem, problem_after = read_tar_index(file)
    archive_size = os.path.getsize(file)
    images: list[tuple[TarMember, str | None]] = []
    for info in infos:
        stem, suffix = os.path.splitext(info.name)
        if suffix.lower() in NOT_IMAGE_SUFFIXES:
            continue
        class_name = class_of_stem.get(stem)
        if not class_name:
            folders = [folder for folder in info.name.split("/")[:-1] if folder not in ("", ".")]
            class_name = folders[0] if folders else None
        problem = find_member_problem(info, archive_size)
        member = TarMember(file, info.name, info.offset_data, info.size, problem)
        images.append((member, class_name))
    if problem_after:
        images.append((TarMember(file, "", 0, 0, problem_after), None))
    return images


def find_member_problem(info: tarfile.TarInfo, archive_size: int) -> str:
    """Why a member can't be read where it lies; empty if it can."""
    if info.issparse():
        return "a sparse file in an archive"
    if info.offset_data + info.size > archive_size:
        return "it goes beyond the end of the archive"
    try:
        check_file_size(info.size, MAX_PACKED_BYTES)
    except SightlineError as error:
        return str(error)
    return ""


class HeaderReader:
    """A tar archive as `tarfile` needs it for reading headers, which refuses to read more.

    A header says how long it is, and tarfile would ask for as much memory.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, byte_count: int) -> bytes:
        """The next bytes. Raises tarfile.ReadError if they are too many."""
        if not 0 <= byte_count <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {byte_count:,} bytes")
        return self._file.read(byte_count)

    def seek(self, offset: int) -> int:
        """Goes to an offset from the beginning."""
        return self._file.seek(offset)

    def tell(self) -> int:
        """The offset from the beginning."""
        return self._file.tell()


def read_tar_index(file: str) -> tuple[list[tarfile.TarInfo], dict[str, str], str]:
    """The files in a tar archive except hidden ones, and the text of `.cls` files by their stem.

    Last, why what follows those files can't be read; empty if all can. Raises SightlineError if
    nothing can be read.
    """
    class_of_stem: dict[str, str] = {}
    try:
        with open(file, "rb") as opened:
            members, problem_after = list_tar_members(opened)
            infos = [
                info
                for info in members
                if info.isreg() and not os.path.basename(info.name).startswith(".")
            ]
            for info in infos:
                stem, suffix = os.path.splitext(info.name)
                if suffix == ".cls":
                    class_of_stem[stem] = read_class_text(opened, info)
    except TAR_ERRORS as error:
        reason = get_first_error_line(error)
        raise SightlineError(
            f"{file} can't be read as an uncompressed tar archive ({reason})"
        ) from error
    return infos, class_of_stem, problem_after


def list_tar_members(file: IO[bytes]) -> tuple[list[tarfile.TarInfo], str]:
    """The members of an opened archive, and why what follows them can't be read.

    Raises one of TAR_ERRORS if there is not even one member.
    """
    members: list[tarfile.TarInfo] = []
    reader: Any = HeaderReader(file)
    try:
        with tarfile.open(fileobj=reader, mode="r:") as archive:
            last_offset = -1
            for info in archive:
                # A negative size would lead back to a member that has been read, for ever.
                if info.size < 0 or info.offset <= last_offset:
                    raise tarfile.ReadError("a member of a negative size")
                last_offset = info.offset
                members.append(info)
            file.seek(archive.offset)
            if any(file.read(tarfile.BLOCKSIZE)):
                raise tarfile.ReadError("a damaged header")
    except TAR_ERRORS as error:
        if not members:
            raise
        reason = get_first_error_line(error)
        return members, f"what follows the first {len(members)} members can't be read ({reason})"
    return members, ""


def read_class_text(file: IO[bytes], info: tarfile.TarInfo) -> str:
    """The text of a `.cls` file; empty if it is too long for a class."""
    if info.size > MAX_CLASS_BYTES or info.issparse():
        logger.debug("%r has %d bytes and is no class", info.name, info.size)
        return ""
    file.seek(info.offset_data)
    return file.read(info.size).decode(errors="surrogateescape").strip()
