"""Settings of the documentation site: `make docs` builds it from these pages and from the
docstrings.

Torch, e3nn and the like are replaced by stand-ins, so that the site builds without them and without
a compiler. hamfast itself is imported from this folder.
"""

import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import stand_ins

from hamfast.version import __version__

project = "hamfast"
author = "The hamfast developers"
copyright = "The hamfast developers"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = f"hamfast {__version__}"
exclude_patterns = ["images"]

# Anchors of headings are made as GitHub makes them, so that links work in both places.
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

stand_ins.install(["ase", "e3nn", "h5py", "lightning", "matplotlib", "rich", "scipy", "torch", "triton"])
stand_ins.install(["hamfast._library"])  # the kernels, which are not compiled
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# Pages of the root that are pages of the site, too: a page holds this line in place of a copy.
_WHOLE_FILE = re.compile(r"^<!-- the text of (\S+) -->$", re.M)
_PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def _read_root_pages(app, docname, source):
    """Puts the text of a page of the root in, and turns links between the root and docs/ into links
    inside the site."""
    text = _WHOLE_FILE.sub(lambda found: _from_root((HERE / found[1]).read_text(encoding="utf-8")), source[0])
    for name, page in _PAGES.items():
        text = text.replace(f"](../{name}", f"]({page}")
    source[0] = text


def _from_root(text):
    text = re.sub(r"\]\((?![a-z]+:|#|docs/)([^)]+)\)", r"](../\1)", text)
    return re.sub(r"\]\(docs/", "](", text)


def _escape(app, what, name, obj, options, lines):
    """Docstrings are plain text with ``code`` in it: the bars of |x| and the stars of y* stand for
    themselves."""
    for n, line in enumerate(lines):
        spans = re.split(r"(``.*?``|:\w+:`.*?`)", line)
        spans[::2] = [re.sub(r"(?<!\\)([|*])", r"\\\1", span) for span in spans[::2]]
        lines[n] = "".join(spans)


def setup(app):
    app.connect("autodoc-process-docstring", _escape, priority=400)  # before napoleon
    app.connect("source-read", _read_root_pages)
    return {"parallel_read_safe": True}
