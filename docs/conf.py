"""How Sphinx builds the manual: `make docs`."""

import os
import sys
from importlib.metadata import version as read_version
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))

from manual import gallery  # noqa: E402

# Two threads that wait for each other take longer than one on a machine that others use as well.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

project = "Sightline"
author = "the authors of Sightline"
copyright = "the authors of Sightline, under Apache-2.0"
version = release = read_version("sightline")

extensions = ["myst_parser", "sphinx_gallery.gen_gallery", "manual"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build", "manual", "examples/sg_execution_times.rst"]
master_doc = "index"

html_theme = "furo"
html_title = "Sightline"
html_static_path = ["manual/static"]
html_css_files = ["manual.css"]
html_theme_options = {"navigation_with_keys": True}
html_show_sphinx = False
templates_path: list[str] = []

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

sphinx_gallery_conf = {
    "examples_dirs": "../gallery",
    "gallery_dirs": "examples",
    "filename_pattern": r"\.py$",
    # These need the networks of a data folder, which no clone has, or download weights.
    "ignore_pattern": r"(paintings|synthesis_networks|pretrained_\w+)\.py$",
    "image_scrapers": (gallery.PictureScraper(),),
    "reset_modules": (gallery.record_pictures,),
    "reset_modules_order": "both",
    "within_subsection_order": "manual.gallery.sort_by_lecture",
    "abort_on_example_error": True,
    "plot_gallery": True,
    "download_all_examples": False,
    "show_signature": False,
    "remove_config_comments": True,
    "min_reported_time": 0,
    "write_computation_times": False,
}

# A download link under each example would offer what `gallery/` already holds.
sphinx_gallery_conf["show_memory"] = False

suppress_warnings = ["config.cache"]  # functions among the settings of the gallery
