"""Writes the colormaps that pictures use to a file, as matplotlib has them.

    python training/write_colormaps.py src/sightline/assets/colormaps.npz

matplotlib takes a tenth of a second to import, which every first picture would wait for.
"""

import sys

import numpy as np

from sightline.images.plotting.maps import read_matplotlib_colormap

NAMES = ("RdBu_r", "inferno", "viridis")


def main() -> None:
    tables = {name: read_matplotlib_colormap(name).numpy() for name in NAMES}
    np.savez_compressed(sys.argv[1], **tables)


if __name__ == "__main__":
    main()
