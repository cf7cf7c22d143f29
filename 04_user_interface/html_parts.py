"""What Gradio has no component for, as HTML, and texts from anywhere made safe to show."""

import html
import re
from collections.abc import Mapping, Sequence

import gradio as gr
import numpy as np
import pandas as pd

# Control characters but for tabs and line ends, and the signs that turn the direction of all that
# follows, up to whatever stands behind the text.
INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


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


def refusal(sentence: str) -> gr.Error:
    """A sentence for the reader, which Gradio shows as HTML and keeps out of the server's log."""
    return gr.Error(safe(sentence), print_exception=False)


def note(text: str) -> str:
    return f'<p class="note" dir="auto">{safe(text)}</p>'


def tiles(numbers: Mapping[str, str]) -> str:
    """Large numbers, each with the name of what it counts."""
    cells = (f"<div><b>{safe(value)}</b>{safe(name)}</div>" for name, value in numbers.items())
    return f'<div class="tiles">{"".join(cells)}</div>'


def facts(pairs: Mapping[str, str]) -> str:
    """Names and what there is to say about them."""
    rows = (f"<dt>{safe(name)}</dt><dd>{safe(text)}</dd>" for name, text in pairs.items())
    return f'<dl class="facts">{"".join(rows)}</dl>'


def heat_table(
    kind: str, numbers: np.ndarray, shades: np.ndarray, rows: Sequence[str], columns: Sequence[str]
) -> str:
    """A table of numbers whose cells are the darker, the nearer their shade is to 1."""
    table = pd.DataFrame(numbers).style.background_gradient(
        "Purples", axis=None, gmap=shades, vmin=0, vmax=1
    )
    table = table.format_index(lambda i: safe(rows[i])).format_index(
        lambda j: safe(columns[j]), axis="columns"
    )
    return f'<div class="heat {kind}" tabindex="0">{table.to_html()}</div>'
