"""`python -m sightline`."""

from sightline.app.cli.main import run_script

if __name__ == "__main__":
    run_script()
