"""A visit's messages: each with its own answer, and which of them is open.

A session is a dictionary that is changed in place, since the answers to two clicks may be on
their way at once: each is written into the entry of its own text.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from explanations import explain
from html_parts import beginning, fleeting_file
from opened import Opened
from thresholds import decide

MAX_LINES = 200  # that are classified each by itself
NO_MESSAGE = "There is no message yet: type one, or click an example."


def new_session() -> dict[str, Any]:
    return {"entries": [], "open": None, "said": ""}


def new_entry(text: str, probabilities: np.ndarray) -> dict[str, Any]:
    answer = {"text": text, "probabilities": probabilities.tolist()}
    return answer | {"found": None, "others": [], "right": None}


def opened_entry(session: dict[str, Any]) -> dict[str, Any] | None:
    return None if session["open"] is None else session["entries"][session["open"]]


class Judge:
    """Opens texts in a session. Of two clicks the later one wins; the first is left midway."""

    def __init__(self, opened: Opened, second: Opened | None):
        self.opened, self.second = opened, second

    def open(self, text: str, session: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Opens the text's entry: its answer at once, then the words, then other opinions."""
        text = text.strip()
        session |= {"open": None, "said": "" if text else NO_MESSAGE}
        if not text:
            yield session
            return
        entry = self._find_or_add(text, session)
        session["open"] = session["entries"].index(entry)
        yield session
        if entry["found"] is None:
            classifier, tokenizer = self.opened.classifier, self.opened.tokenizer
            best = int(np.argmax(entry["probabilities"]))
            entry["found"] = explain(
                classifier, tokenizer, text, best, lambda: opened_entry(session) is entry
            )
            if entry["found"] is None:
                return
            yield session
        if not entry["others"]:
            entry["others"] = self._other_opinions(text)
            yield session

    def open_if_any(self, text: str, session: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if text:
            yield from self.open(text, session)

    def open_lines(self, text: str, session: dict[str, Any]) -> dict[str, Any]:
        """Each line becomes an entry; none is open."""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        known = {entry["text"] for entry in session["entries"]}
        new = list(dict.fromkeys(line for line in lines[:MAX_LINES] if line not in known))
        if new:
            session["entries"] += map(new_entry, new, self.opened.probabilities(new))
        said = f"{len(lines):,} messages: click one below to see the words behind its answer."
        if len(lines) > MAX_LINES:
            said = f"The first {MAX_LINES} of {said} 'Many messages' takes them all, as a file."
        session |= {"open": None, "said": said}
        return session

    def _find_or_add(self, text: str, session: dict[str, Any]) -> dict[str, Any]:
        entry = next((entry for entry in session["entries"] if entry["text"] == text), None)
        if entry is None:
            entry = new_entry(text, self.opened.probabilities([text])[0])
            session["entries"].append(entry)
        return entry

    def _other_opinions(self, text: str) -> list[dict[str, str]]:
        opinions = []
        rival = self.opened.rival_probabilities(text)
        if rival is not None:
            opinions.append(("linear model on n-grams", self.opened.names, rival))
        if self.second is not None:
            theirs = self.second.probabilities([text])[0]
            opinions.append((self.second.name, self.second.names, theirs))
        return [
            {"who else": who, "answer": names[p.argmax()], "sure": f"{p.max():.1%}"}
            for who, names, p in opinions
        ]


def close_entry(session: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """An empty text, and the session in which nothing is open."""
    session |= {"open": None, "said": ""}
    return "", session


def say_right(label: str, text: str, session: dict[str, Any]) -> dict[str, Any]:
    """Of the text whose answer was on the screen, even if another is open by now."""
    next(entry for entry in session["entries"] if entry["text"] == text)["right"] = label
    return session


def history_rows(session: dict[str, Any], names: Sequence[str], threshold: float) -> list[list]:
    """A row for each message, the latest first."""
    rows = []
    for entry in reversed(session["entries"]):
        answer = decide(np.array(entry["probabilities"]), names, threshold)
        sure = f"{max(entry['probabilities']):.1%}"
        rows.append([beginning(entry["text"]), answer, sure, entry["right"] or ""])
    return rows


def labelled_file(session: dict[str, Any]) -> str:
    """The messages whose right label was said, as `finetune.py --data` takes them."""
    rows = [(e["text"], e["right"]) for e in session["entries"] if e["right"] is not None]
    path = fleeting_file("labelled.csv")
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(path, index=False, encoding="utf-8")
    return str(path)
