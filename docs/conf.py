"""The documentation site: `make docs` builds it into site/ with every warning an error.

The pages of the reference are made from the code: the commands by typer's own generator, the Python names from their
docstrings.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import SphinxError

import ddt_accel

project = "ddt-accel"
release = ddt_accel.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = "ddt-accel"
html_static_path = ["style"]
html_css_files = ["tables.css"]
html_copy_source = False
html_show_copyright = False
html_theme_options = {"top_of_page_buttons": []}
smartquotes = False  # they make dashes of options
highlight_language = "text"  # of blocks that name no language

myst_heading_anchors = 3

default_role = "code"  # docstrings write code between single backticks
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

COMMANDS = Path(__file__).parent / "reference" / "command-line.md"
# What a browser fetches by itself; links that a reader may follow are not among it.
FOREIGN = re.compile(r"<(?:script|img|iframe|source|link)\b[^>]*\s(?:src|href)=[\"']?(?:https?:)?//[^>]*>")


def write_commands(app: Sphinx, config: object) -> None:
    """Writes the page of all commands."""
    command = [sys.executable, "-m", "typer", "ddt_accel.cli.app", "utils", "docs", "--name", "ddt-accel"]
    root = Path(__file__).parents[1]
    made = subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8", cwd=root).stdout
    page = "# Command line\n\n`ddt-accel COMMAND --help` says the same.\n" + made.partition("\n")[2]
    if not COMMANDS.exists() or COMMANDS.read_text(encoding="utf-8") != page:
        COMMANDS.write_text(page, encoding="utf-8")


def check_nothing_foreign(app: Sphinx, exception: Exception | None) -> None:
    """Pages must work without a network: nothing on them may come from another host."""
    for page in Path(app.outdir).rglob("*.html"):
        if found := FOREIGN.search(page.read_text(encoding="utf-8")):
            raise SphinxError(f"{page} loads something from another host: {found.group()}")


def setup(app: Sphinx) -> None:
    app.connect("config-inited", write_commands)
    app.connect("build-finished", check_nothing_foreign)
