"""What Gradio has no component for, as HTML, and texts from anywhere made safe to show."""

import html
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd
from gradio.utils import get_upload_folder

# Control characters but for tabs and line ends, and the signs that turn the direction of all that
# follows, up to whatever stands behind the text.
INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
QUIET = {"api_visibility": "private", "show_progress": "hidden"}  # an event of the page's own


def visible(text: str) -> str:
    """The text with its invisible signs spelled out.

    >>> visible("\\u202eolleh")
    '⟨U+202E⟩olleh'
    """
    return INVISIBLE.sub(lambda sign: f"⟨U+{ord(sign[0]):04X}⟩", text)


def safe(text: str) -> str:
    """Text that is nothing but text between tags, whatever it holds.

    >>> safe("<b>'&'")
    "&lt;b&gt;'&amp;'"
    """
    return html.escape(visible(text), quote=False)


def beginning(text: str, length: int = 200) -> str:
    """What a table shows of a text."""
    return visible(text if len(text) <= length else text[: length - 1] + "…")


def refusal(sentence: str) -> gr.Error:
    """A sentence for a program, which Gradio keeps out of the server's log."""
    return gr.Error(safe(sentence), print_exception=False)


def note(text: str, kind: str = "") -> str:
    return f'<p class="note {kind}" dir="auto">{safe(text)}</p>'


def tiles(numbers: Mapping[str, str]) -> str:
    """Large numbers, each with the name of what it counts."""
    cells = (f"<div><b>{safe(value)}</b>{safe(name)}</div>" for name, value in numbers.items())
    return f'<div class="tiles">{"".join(cells)}</div>'


def table(frame: pd.DataFrame, caption: str, **how: Any) -> str:
    """A small table. One to click in is a `gr.Dataset`, a long one a `gr.Dataframe`."""
    with pd.option_context("display.max_colwidth", None):
        html_table = visible(frame.to_html(border=0, **{"index": False, **how}))  # escapes cells
    return html_table.replace(">", f"><caption>{safe(caption)}</caption>", 1)


def new_file(name: str) -> Path:
    """Where to write a file: in Gradio's own folder, where it is deleted after an hour."""
    folder = Path(get_upload_folder())
    folder.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(dir=folder), name)
