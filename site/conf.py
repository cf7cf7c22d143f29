"""The collection as a website: `sphinx-build -c site . site/html` from the top folder.

Its pages are the READMEs and notebooks as they are; `contents.yml` gives their order.
"""

import re

project = "Fine-tuning a GPT for classification"
extensions = ["myst_nb", "sphinx_external_toc"]
external_toc_path = "site/contents.yml"
external_toc_exclude_missing = True  # whatever is not in the contents is no page
exclude_patterns = ["**/.*", ".*", "site/html"]
nb_execution_mode = "off"  # the notebooks' saved outputs are shown
myst_heading_anchors = 4  # links lead to sections, as they do in the files
myst_enable_extensions = ["dollarmath"]
nitpick_ignore_regex = [("myst", r"[^.#]+")]  # links to folders: a website shows none
suppress_warnings = ["myst.header"]  # headings that skip a level
html_theme = "sphinx_book_theme"
html_title = project
html_extra_path = ["index.html"]
html_theme_options = {"navbar_persistent": []}  # the search stands in the side bar


def setup(app):
    """Leave out the tests' badge, which has an address on GitHub only."""

    def without_badge(app, page, source):
        source[0] = re.sub(r"\[!\[[^]]*\]\(\.\./\.\./actions/.*?\)\]\(.*?\) ?", "", source[0])

    app.connect("source-read", without_badge)
