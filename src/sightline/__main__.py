"""`python -m sightline`."""

from .cli import run_script

run_script()
