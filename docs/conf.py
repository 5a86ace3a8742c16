"""The docs site, made by ``make docs``: pages as they are in the repository, no network.

Comes in: the Markdown pages and the committed notebooks (not executed). Goes out: HTML. The source
folder is the root of the repository, so a link that works in a checkout works in the site.
"""

import re
import shutil
from pathlib import Path

from docutils.nodes import SkipNode
from docutils.utils.math import latex2mathml
from sphinx.errors import ExtensionError

import specmoe

project = "specmoe"
version = release = specmoe.__version__
root_doc = "docs/index"
include_patterns = [
    "docs/*.md",
    "notebooks/*.ipynb",
    "tutorials/*.md",
    "specmoe/lab/bench/README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
]
extensions = ["myst_nb", "sphinx.ext.autodoc"]

nb_execution_mode = "off"  # notebooks are committed as they were executed
# A widget needs a kernel, and what draws it without one comes from a network: the text beside it.
nb_ipywidgets_js = {}
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"

html_theme = "furo"
html_title = f"specmoe {version}"
html_copy_source = False
html_show_sphinx = html_show_copyright = False


def mathml(self, node):
    """Formulas as MathML, by docutils: MathJax would come from a network."""
    block = node.tagname == "math_block"
    self.body.append(str(latex2mathml.tex2mathml(node.astext(), as_block=block)))
    raise SkipNode


# What a page loads by itself; links to follow are no matter.
FETCHED = re.compile(
    r"<(?:script|link|img|iframe|source|video|audio)\b[^>]*?(?:src|href)=.?(?:https?:)?//[^>]*>"
)


def finish(app, failure):
    """The live page as it is, beside the pages that link to it, and a way in from the top; fails
    where a page would ask a network for something."""
    if failure:
        return
    shutil.copy(Path(__file__).with_name("specmoe.html"), app.outdir / "docs")
    start = '<meta http-equiv="refresh" content="0; url=docs/index.html">'
    (app.outdir / "index.html").write_text(start, encoding="utf-8")
    for page in sorted(app.outdir.rglob("*.html")):
        if found := FETCHED.search(page.read_text(encoding="utf-8")):
            raise ExtensionError(f"{page} would load {found[0]} from a network")


def setup(app):
    app.add_html_math_renderer("mathml", (mathml, None), (mathml, None))
    app.connect("build-finished", finish)


html_math_renderer = "mathml"
