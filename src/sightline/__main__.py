"""`python -m sightline`."""

from sightline.app.cli.main import run_script

run_script()
