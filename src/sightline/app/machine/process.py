"""Warnings of the libraries that decode pictures."""

import warnings


def ignore_decoder_warnings() -> None:
    """Keeps off the error stream what Pillow says of odd tags, which lacks the picture's name."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
