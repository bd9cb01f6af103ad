"""Another library's errors become one line; what is no error of a library stays what it is."""

import pytest

from sightline.data.table_errors import convert_table_errors, explain_disk_error
from sightline.errors import SightlineError


def test_an_operating_systems_words_are_found() -> None:
    lance_words = "LanceError(IO): Io error: No space left on device (os error 28), src/a.rs:1\nat"
    assert explain_disk_error(RuntimeError(lance_words)) == "No space left on device"
    assert explain_disk_error(OSError(13, "Permission denied")) == "Permission denied"
    assert explain_disk_error(ValueError("first\nsecond")) == "first"


class PanicException(BaseException):
    """What a Rust library raises where it can't go on."""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(5, "Input/output error"), "a.scan is damaged (Input/output error)"),
        (KeyError("id"), "a.scan is damaged ('id')"),
        (MemoryError(), "not enough memory for this store or table; lower batch or k"),
        (PanicException("index out of bounds\nmore"), "a.scan is damaged (index out of bounds)"),
        (SightlineError("something else"), "something else"),
    ],
    ids=["system", "key", "memory", "panic", "own"],
)
def test_errors_are_one_line(error: BaseException, message: str) -> None:
    with pytest.raises(SightlineError) as caught, convert_table_errors("a.scan is damaged"):
        raise error
    assert str(caught.value) == message


def test_an_interruption_stays_one() -> None:
    with pytest.raises(KeyboardInterrupt), convert_table_errors("a.scan is damaged"):
        raise KeyboardInterrupt
