"""What Gradio has no component for, as HTML, and texts from anywhere made safe to show."""

import html
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pandas as pd

# Control characters but for tabs and line ends, and the signs that turn the direction of all that
# follows, up to whatever stands behind the text.
INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
KEPT_SECONDS = 3600  # files, and what is made of them
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


def facts(pairs: Mapping[str, str]) -> str:
    """Names and what there is to say about them."""
    rows = (f"<dt>{safe(name)}</dt><dd>{safe(text)}</dd>" for name, text in pairs.items())
    return f'<dl class="facts">{"".join(rows)}</dl>'


def table(frame: pd.DataFrame, caption: str) -> str:
    """A small table. One to click in is a `gr.Dataset`, a long one a `gr.Dataframe`."""
    with pd.option_context("display.max_colwidth", None):
        html_table = visible(frame.to_html(index=False, border=0))  # pandas escapes what it holds
    return html_table.replace("<thead>", f"<caption>{safe(caption)}</caption><thead>", 1)


def heat_table(
    kind: str, numbers: np.ndarray, shades: np.ndarray, rows: Sequence[str], columns: Sequence[str]
) -> str:
    """A table whose cells are the darker, the nearer their shade is to 1."""
    lines = ["<th></th>" + "".join(f'<th scope="col">{safe(name)}</th>' for name in columns)]
    for name, values, depths in zip(rows, numbers, shades, strict=True):
        cells = (f'<td style="--shade:{d:.0%}">{v}</td>' for v, d in zip(values, depths))
        lines.append(f'<th scope="row">{safe(name)}</th>' + "".join(cells))
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="heat {kind}" tabindex="0"><table>{body}</table></div>'


def fleeting_file(name: str) -> Path:
    """Where to write a file that is deleted after an hour."""
    folder = tempfile.mkdtemp()
    timer = threading.Timer(KEPT_SECONDS, shutil.rmtree, [folder, True])
    timer.daemon = True
    timer.start()
    return Path(folder, name)


def download_on_click(button: gr.Button, make_file: Callable, inputs: Sequence[Any]) -> None:
    """Makes the file at the click, so that it is that of the moment, and hands it over."""
    name = f"file-of-{button.elem_id}"
    file = gr.DownloadButton(visible="hidden", elem_id=name)
    click = f"() => setTimeout(() => document.querySelector('#{name}').click(), 200)"
    made = button.click(make_file, inputs, file, api_visibility="private", show_progress_on=button)
    made.success(None, js=click)
