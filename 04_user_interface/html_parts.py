"""Small pieces of HTML for what Gradio has no widget for. All text in them is made safe here."""

import html
from collections.abc import Mapping, Sequence

import numpy as np

STYLE = """
.gradio-container { max-width: 1180px !important; width: 100% !important; margin: 0 auto; }
#summary, #summary * { padding-left: 0 !important; }
.answer { font-size: 1.7rem; font-weight: 700; line-height: 1.25; overflow-wrap: anywhere; }
.answer small { display: block; font-size: .95rem; font-weight: 400; margin-top: .2rem; }
.note, .caption { margin: 0; overflow-wrap: anywhere; }
.caption { padding-bottom: .6rem; }
.warning { border-left: 4px solid #d97706; padding: .5rem .8rem; margin: 0; }
#words .note { margin: 1.2rem 0 .5rem; font-size: .9rem; }
.words { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 2.1; margin: 0;
  max-height: 22rem; overflow-y: auto; }
.words mark { color: inherit; border-radius: .2rem; padding: .15rem 0;
  background: color-mix(in srgb, var(--hue) calc(var(--share) * 55%), transparent); }
.words sup { font-size: .68rem; padding: 0 .15rem; }
.words .unread { opacity: .6; font-style: italic; }
.for { --hue: #ea580c; }
.against { --hue: #2563eb; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: .7rem; }
.tiles div { border: 1px solid var(--border-color-primary); border-radius: .5rem; padding: .7rem; }
.tiles b { display: block; font-size: 1.45rem; }
.facts { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .6rem 1.2rem; }
.facts dt { font-weight: 600; }
.facts dd { margin: 0; overflow-wrap: anywhere; max-width: 46rem; }
.heat { overflow-x: auto; contain: inline-size; }
.heat table { border-collapse: collapse; width: max-content; margin: 0; }
.heat th, .heat td { border: 1px solid var(--border-color-primary); font-weight: 400; }
.heat th { padding: .15rem .4rem; text-align: right; white-space: pre; }
.heat thead th { vertical-align: bottom; text-align: center; }
.heat td { background: color-mix(in srgb, #4f46e5 calc(var(--share) * 100%), transparent); }
.heat td.strong { color: white; }
.heat.numbers td { padding: .5rem .9rem; text-align: center; font-size: 1.1rem; }
.heat.map td { width: 1.15rem; min-width: 1.15rem; height: 1.15rem; padding: 0; font-size: 0; }
.heat.map table { font-family: var(--font-mono); font-size: .72rem; }
.heat.map thead th { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left; }
@media (max-width: 500px) {  /* all four tabs fit side by side */
  .gradio-container main { padding: .8rem .6rem !important; }
  .tab-container button { padding: 0 .15rem; font-size: .75rem; }
  #table th, #table th *, #table td { font-size: .7rem; padding-inline: .1rem; }
  #table th * { overflow-wrap: normal; word-break: keep-all; }
}
@media (min-width: 501px) { #table .header-cell .cell-menu-button { display: flex; } }
"""

# Control characters as the signs that Unicode has for them; line ends and tabs stay. Those without
# a sign are spelled out, and so is what turns the direction of all that follows, up to whatever
# stands behind the text.
CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}
TURNS = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
CONTROLS |= {code: f"⟨U+{code:04X}⟩" for code in (*range(0x80, 0xA0), *TURNS)}


def visible(text: str) -> str:
    """The text with its invisible signs spelled out, for Gradio's own widgets."""
    return text.translate(CONTROLS)


def safe(text: str, quote: bool = True) -> str:
    """Text that is nothing but text, whatever it holds.

    Without `quote`, quotation marks stay: that is for text between tags, not for attributes.

    >>> safe("<b>&\\0")
    '&lt;b&gt;&amp;␀'
    >>> safe("\\u202eolleh\\x85")
    '⟨U+202E⟩olleh⟨U+0085⟩'
    """
    return html.escape(visible(text), quote)


def answer(headline: str, detail: str) -> str:
    return f'<p class="answer" dir="auto">{safe(headline)}<small>{safe(detail)}</small></p>'


def note(text: str) -> str:
    return f'<p class="note">{safe(text)}</p>'


def warning(text: str) -> str:
    return f'<p class="warning" role="note">{safe(text)}</p>'


def tiles(figures: Mapping[str, str]) -> str:
    """Large numbers, each with the name of what it counts."""
    cells = (f"<div><b>{safe(value)}</b>{safe(name)}</div>" for name, value in figures.items())
    return f'<div class="tiles">{"".join(cells)}</div>'


def facts(pairs: Mapping[str, str]) -> str:
    """Names and what there is to say about them."""
    rows = (f"<dt>{safe(name)}</dt><dd>{safe(text)}</dd>" for name, text in pairs.items())
    return f'<dl class="facts">{"".join(rows)}</dl>'


def marked_words(parts: Sequence[str], changes: Sequence[float], unread: str) -> str:
    """A text whose parts carry a colour for the sign of their change and a shade for its size;
    the larger changes stand beside them, so that colour is not needed to read the sign."""
    largest = max(map(abs, changes), default=0) or 1
    marks = []
    for part, change in zip(parts, changes, strict=True):
        word = part.lstrip()
        share = abs(change) / largest
        kind = "for" if change > 0 else "against"
        number = f"<sup>{change:+.1f}</sup>" if share > 0.15 else ""
        marks.append(
            f'{safe(part[: len(part) - len(word)])}<mark class="{kind}" style="--share:{share:.2f}"'
            f' title="{change:+.2f}">{safe(word)}{number}</mark>'
        )
    rest = f'<span class="unread">{safe(unread)}</span>' if unread else ""
    return f'<p class="words" dir="auto" tabindex="0">{"".join(marks)}{rest}</p>'


def heat_table(
    kind: str,
    caption: str,
    row_names: Sequence[str],
    column_names: Sequence[str],
    shades: np.ndarray,
    texts: np.ndarray,
) -> str:
    """A table (rows, columns) whose cells are the darker, the nearer their shade is to 1.

    Of the kind "numbers", the cells' texts are large; of the kind "map", they are for the pointer
    and for those who listen.
    """
    head = "".join(f'<th scope="col">{safe(name)}</th>' for name in column_names)
    body = []
    for i, row_name in enumerate(row_names):
        cells = []
        for j, column_name in enumerate(column_names):
            strong = ' class="strong"' if shades[i, j] > 0.55 else ""
            title = safe(f"{row_name} → {column_name}: {texts[i, j]}")
            cells.append(
                f'<td{strong} style="--share:{shades[i, j]:.3f}" title="{title}">'
                f"{safe(str(texts[i, j]))}</td>"
            )
        body.append(f'<tr><th scope="row">{safe(row_name)}</th>{"".join(cells)}</tr>')
    return (
        f'<p class="caption">{safe(caption)}</p>'
        f'<div class="heat {kind}" tabindex="0" role="region" aria-label="{safe(caption)}">'
        f"<table><thead><tr><td></td>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
        "</div>"
    )
