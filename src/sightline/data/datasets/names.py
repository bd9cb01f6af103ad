r"""Names of files that are not UTF-8, as text that a store can hold.

Python keeps the bytes of such a name as lone surrogates, which neither JSON nor Arrow can hold. In
a store they are escapes (`caf\xe9.png`), from which the name can be found again.
"""

import os
import re

LONE_SURROGATE = re.compile("[\ud800-\udfff]")

ESCAPED_BYTE = re.compile(r"\\x([89a-f][0-9a-f])")

FIRST_BYTE_SURROGATE = 0xDC00  # stands for byte 0; only those from 128 on occur


def make_storable_name(name: str) -> str:
    """A name as valid UTF-8: bytes that are not, and other lone surrogates, become escapes."""
    return LONE_SURROGATE.sub(_escape_surrogate, name)


def find_stored_file(name: str) -> str:
    """The path of a file by its name in a store, where bytes may have become escapes.

    Folders are looked up one by one, since a name may also hold such an escape literally.
    """
    if os.path.lexists(name):
        return name
    path, *segments = name.split(os.sep)
    for segment in segments:
        literal_path = f"{path}{os.sep}{segment}"
        raw_path = f"{path}{os.sep}{ESCAPED_BYTE.sub(_restore_surrogate, segment)}"
        is_raw = not os.path.lexists(literal_path) and os.path.lexists(raw_path)
        path = raw_path if is_raw else literal_path
    return path


def encode_name(name: str) -> bytes:
    """The bytes of a name, for a digest."""
    try:
        return name.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # a surrogate that stands for no byte, so no file has this name
        return name.encode(errors="surrogatepass")


def _escape_surrogate(match: re.Match[str]) -> str:
    code = ord(match[0])
    if FIRST_BYTE_SURROGATE + 128 <= code < FIRST_BYTE_SURROGATE + 256:
        return f"\\x{code - FIRST_BYTE_SURROGATE:02x}"
    return f"\\u{code:04x}"


def _restore_surrogate(match: re.Match[str]) -> str:
    return chr(FIRST_BYTE_SURROGATE + int(match[1], 16))
