"""How the site is made: `make docs` writes it to build/site.

The source directory is the repository, so that README, change log and derivations are pages where they lie.
"""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
GALLERY = ROOT / "build" / "gallery"
sys.path.insert(0, str(HERE / "_ext"))

from markdown_texts import gallery_scripts  # noqa: E402
from milkweed import __version__ as release  # noqa: E402

project = "milkweed"
author = "the authors of milkweed"
version = release
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_gallery.gen_gallery",
    "markdown_texts",
]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**", "src/milkweed/**/README.md", "build/gallery/**"]
exclude_patterns = [
    ".*",
    ".venv",
    "build/scripts",
    "build/site",
    "build/doctrees",
    "runs",
    "tests",
    "benchmarks",
    "docs/_*",
]

html_theme = "furo"
html_title = f"milkweed {release}"
html_extra_path = ["_extra"]
html_copy_source = False
highlight_language = "none"

default_role = "code"
myst_heading_anchors = 3
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}

# Scripts that are done within 20 seconds run while the site is built; the others are shown only.
QUICK = ("monarch_transforms", "s4d_from_hippo")
gallery_scripts(ROOT / "examples", ROOT / "build" / "scripts")
sphinx_gallery_conf = {
    "examples_dirs": [str(ROOT / "build" / "scripts")],
    "gallery_dirs": [str(GALLERY)],
    # SITE_WITHOUT_SCRIPTS=1 shows them all only, for a quick look at the texts.
    "filename_pattern": rf"({'|'.join(QUICK)})\.py$" if not os.environ.get("SITE_WITHOUT_SCRIPTS") else "^$",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "min_reported_time": 1_000,
    "show_memory": False,
    "write_computation_times": False,
}
