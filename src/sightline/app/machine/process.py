"""What each process of a command does when it starts and when it is ended.

Nothing here imports anything large.
"""

import sys
import warnings


def ignore_decoder_warnings() -> None:
    """Keeps off the error stream what Pillow says of odd tags, which lacks the picture's name."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


def remove_unfinished_files() -> None:
    """Removes what is being written, for a process that ends at once."""
    files = sys.modules.get("sightline.images.files")
    if files is not None:  # else nothing was written yet
        files.remove_temporary_files()
