"""`python -m sightline`."""

from .cli import script

script()
