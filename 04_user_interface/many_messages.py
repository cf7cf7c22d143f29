"""The second tab: a file of messages is classified into a file to download.

And `/classify_file`, which does the same for programs.
"""

import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import html_parts as parts
import numpy as np
from classified_files import ERRORS_SHOWN, FILE_TYPES, ROWS_SHOWN, Job
from gradio.events import Dependency
from html_parts import KEPT_SECONDS, QUIET, beginning, note, refusal, tiles, visible
from opened import Opened
from quality import confusion_table
from thresholds import consequences, decide

from evaluation import confusion_matrix
from message_files import DataError, check_columns

NO_LABELS = "(the file has none)"
HINT = (
    "CSV, TSV, JSON lines, Parquet or Excel with a row for each message, or a text file with a "
    "message on each line; up to 50 MB."
)


def status(job: Job, threshold: float) -> str:
    """How far the job is, and what it found."""
    shares, num_rows = job.probabilities, len(job.texts)
    done = len(shares)
    if job.ended and not done:
        return note(f"{job.name}: ended before a message was classified.", "problem")
    if not job.ended:
        text = f"{job.name}: {done:,} of {num_rows:,} messages classified"
        text += f", about {job.remaining_seconds:,.0f} s to go." if done else "."
        bar = f'<progress max="{num_rows}" value="{done}" aria-label="classified"></progress>'
        return note(text) + bar
    labels = Counter(decide(row, job.opened.names, threshold) for row in shares)
    counts = ", ".join(f"{n:,} {name}" for name, n in labels.most_common(12))
    text = f"{done:,} messages: {counts}."
    if done < num_rows:
        text = f"stopped after {done:,} of {num_rows:,} messages, which can be downloaded. {text}"
    if done > ROWS_SHOWN:
        text += f" The table shows the first {ROWS_SHOWN}; the download holds all."
    return note(f"{job.name}: {text}")


def first_rows(job: Job, threshold: float) -> list[list[Any]]:
    rows = zip(job.texts[:ROWS_SHOWN], job.probabilities)
    return [
        [i, beginning(text), decide(row, job.opened.names, threshold), round(100 * row.max(), 1)]
        for i, (text, row) in enumerate(rows, start=1)
    ]


def worst_errors(job: Job, labels: np.ndarray, threshold: float) -> list[list[Any]]:
    """Wrong answers, the surest first: row, message, true label, answer with its probability."""
    sure, answers = job.probabilities.max(axis=1), job.probabilities.argmax(axis=1)
    wrong = np.flatnonzero((labels >= 0) & (answers != labels) & (sure >= threshold))
    name = job.opened.names
    return [
        [str(i + 1), beginning(job.texts[i]), name[labels[i]], f"{name[answers[i]]} {sure[i]:.1%}"]
        for i in wrong[np.argsort(-sure[wrong], kind="stable")][:ERRORS_SHOWN]
    ]


def report(job: Job, threshold: float) -> list[Any]:
    """What the file's own labels say of the answers: counts, classes, matrix, errors."""
    labels = job.labels() if job.label_column else np.array([])
    known = labels >= 0
    if not known.any():
        return [gr.Column(visible=False), "", "", gr.Dataset(samples=[])]
    shares, names = job.probabilities[known], job.opened.names
    matrix = confusion_matrix(labels[known], shares.argmax(axis=1), len(names))
    return [
        gr.Column(visible=True),
        tiles(consequences(labels[known], shares, threshold)),
        confusion_table(matrix, names),
        gr.Dataset(samples=worst_errors(job, labels, threshold)),
    ]


def many_messages_tab(
    opened: Opened,
    threshold: gr.Slider,
    page: gr.Blocks,
    tabs: gr.Tabs,
    key: gr.BrowserState,
    message: gr.Textbox,
    open_after: Callable[[Dependency], None],
) -> None:
    jobs: dict[str, Job] = {}

    def stop_job(key: str) -> None:
        if key in jobs:
            jobs[key].wanted = False

    def work(key: str, job: Job) -> None:
        try:
            job.run()
        finally:
            time.sleep(KEPT_SECONDS)
            jobs.pop(key, None)

    def look(file: str | None, key: str) -> tuple:
        """The file's columns to choose from, the guessed ones chosen; what was there is cleared."""
        stop_job(key)
        empty = gr.Dropdown(choices=[], value=None, interactive=False)
        if file is None:
            return empty, empty, "", ""
        try:
            job = Job(opened, Path(file))
        except DataError as error:
            return empty, empty, note(str(error), "problem"), ""
        names = [(visible(name), name) for name in job.table.columns]
        text_column = gr.Dropdown(names, value=job.text_column, interactive=True)
        names.insert(0, (NO_LABELS, ""))
        labels = gr.Dropdown(names, value=job.label_column or "", interactive=True)
        return text_column, labels, note(f"{job.name}: {len(job.texts):,} rows."), ""

    def begin(file: str | None, text_column: str | None, label_column: str, key: str) -> tuple:
        stop_job(key)
        if not file:
            return note("There is no file yet: choose one first.", "problem"), ""
        try:
            job = Job(opened, Path(file), text_column)
            check_columns(job.table, Path(job.name), [label_column] if label_column else [])
        except DataError as error:
            return note(str(error), "problem"), ""
        job.label_column = label_column or None
        jobs.pop(key, None)  # the browser keeps the new one's key
        key = secrets.token_urlsafe()
        jobs[key] = job
        threading.Thread(target=work, args=(key, job), daemon=True).start()
        return "", key

    def show(key: str, threshold: float) -> list[Any]:
        """How far the job is; its tables, once it has ended."""
        job = jobs.get(key)
        done, ended = (job.num_done, job.ended) if job else (0, True)
        tables = [[], gr.Column(visible=False), "", "", gr.skip()]
        if done and ended:
            tables = [first_rows(job, threshold), *report(job, threshold)]
        usable = gr.Button(interactive=done > 0)
        said = status(job, threshold) if job else ""
        return [said, *tables, usable, usable, gr.Timer(active=not ended)]

    def pick(key: str, row: list) -> tuple[str, gr.Tabs]:
        return jobs[key].texts[int(row[0]) - 1], gr.Tabs(selected="one")

    def pick_answer(key: str, event: gr.SelectData) -> tuple[str, gr.Tabs]:
        return pick(key, event.row_value)

    def write(kind: str, key: str, threshold: float) -> str:
        return str(jobs[key].write(kind, threshold))

    def classify_for_client(file: str, text_column: str = "", threshold: float = 0) -> str:
        """Classify every row of a CSV, TSV, JSON lines, Parquet, Excel or text file (a message a
        line).

        Gives a CSV file with all rows and columns, and the columns `predicted_label`,
        `probability` and `probability of ...` each label added. Where the column with the texts is
        not named, it is guessed. Below the threshold the label is `undecided`.
        """
        try:
            job = Job(opened, Path(file), text_column)
        except DataError as error:
            raise refusal(str(error)) from None
        job.run()
        return str(job.write("csv", threshold))

    timer = gr.Timer(1, active=False)
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            about = {"label": "File of messages", "elem_id": "upload"}
            file = gr.File(file_types=FILE_TYPES, height=150, **about)
            hidden = {"choices": [], "interactive": False, "allow_custom_value": True}
            column = gr.Dropdown(label="Column with the messages", elem_id="column", **hidden)
            label_column = gr.Dropdown(
                label="Column with the true labels", elem_id="label-column", **hidden
            )
            with gr.Row():
                start = gr.Button("Classify file", variant="primary", min_width=100)
                stop = gr.Button("Stop", min_width=100)
        with gr.Column(scale=5, min_width=300):
            problem = gr.HTML(note(HINT), elem_id="problem", elem_classes="live")
            state = gr.HTML(elem_id="status", elem_classes="live")
            off = {"interactive": False, "min_width": 100}
            with gr.Row():
                as_csv = gr.Button("Download CSV", size="sm", **off, elem_id="as-csv")
                as_excel = gr.Button("Download Excel", size="sm", **off, elem_id="as-excel")
            answers = gr.Dataframe(
                label="Click a row for its words",
                headers=["row", "message", "answer", "sure %"],
                datatype=["number", "str", "str", "number"],
                interactive=False,
                max_height=420,
                show_search="search",
                column_widths=["11%", "45%", "27%", "17%"],
                buttons=["fullscreen"],
                wrap=True,
                elem_id="table",
            )
    with gr.Column(visible=False, elem_id="report") as judged:
        gr.Markdown("## Measured by the file's own labels")
        numbers = gr.HTML()
        gr.Markdown("A row for each true class, a column for each likeliest class:")
        matrix = gr.HTML()
        errors = gr.Dataset(
            components=["textbox"] * 4,
            headers=["Row", "Message", "True label", "Answer"],
            label="Wrong answers, the surest first: click one to see its words",
            elem_id="errors",
        )

    file.change(look, [file, key], [column, label_column, problem, key], **QUIET)
    start.click(
        begin,
        [file, column, label_column, key],
        [problem, key],
        trigger_mode="multiple",
        api_visibility="private",
        show_progress_on=problem,
    )
    shown = [state, answers, judged, numbers, matrix, errors]
    shown += [as_csv, as_excel, timer]
    look_again = [page.load, key.change, timer.tick, threshold.change]
    inputs = [key, threshold]
    gr.on(look_again, show, inputs, shown, trigger_mode="always_last", **QUIET)
    stop.click(stop_job, key, None, **QUIET).then(show, inputs, shown, **QUIET)
    open_after(answers.select(pick_answer, key, [message, tabs], **QUIET))
    open_after(errors.click(pick, [key, errors], [message, tabs], **QUIET))
    for button, kind in ((as_csv, "csv"), (as_excel, "xlsx")):
        parts.download_on_click(button, partial(write, kind), [key, threshold])

    # What programs call has widgets of its own, which nobody sees.
    with gr.Row(visible=False):
        sent = [gr.File(label="file", file_types=FILE_TYPES), gr.Textbox(""), gr.Number(0)]
        gr.Button().click(
            classify_for_client, sent, gr.File(label="classified"), api_name="classify_file"
        )
