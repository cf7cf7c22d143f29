"""The second tab: a file of messages is classified into a file to download.

And `/classify_file`, which does the same for programs.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pandas as pd
from classified_files import FILE_TYPES, Job
from html_parts import QUIET, beginning, note, refusal, tiles, visible
from one_message import opening
from opened import Opened
from quality import confusion_table
from thresholds import consequences, decide

from evaluation import confusion_matrix
from message_files import DataError

ROWS_SHOWN = 500  # in the browser; the download holds all
NO_LABELS = "(the file has none)"
HINT = (
    "CSV, TSV, JSON lines, Parquet or Excel with a row for each message, or a text file with a "
    "message on each line; up to 50 MB."
)


def status(job: Job, threshold: float) -> str:
    """How far the job is, and what it found."""
    done, num_rows, names = job.num_done, len(job.texts), job.opened.names
    labels = Counter(decide(row, names, threshold) for row in job.probabilities)
    counts = ", ".join(f"{n:,} {name}" for name, n in labels.most_common(12))
    text = f"{done:,} of {num_rows:,} messages classified: {counts}."
    if done > ROWS_SHOWN:
        text += f" The table shows {ROWS_SHOWN} of them; the download holds all."
    return note(f"{job.name}: {text}")


def rows_shown(job: Job, threshold: float) -> pd.DataFrame:
    """The file's first rows; of one with labels the wrong answers come first, the surest ahead."""
    sure, answers, labels = job.probabilities.max(1), job.probabilities.argmax(1), job.labels()
    wrong = (labels >= 0) & (answers != labels) & (sure >= threshold)
    rows = [
        {
            "row": i + 1,
            "message": beginning(job.texts[i]),
            "answer": decide(job.probabilities[i], job.opened.names, threshold),
            "sure %": round(100 * sure[i], 1),
            "true label": job.opened.names[labels[i]] if labels[i] >= 0 else "",
        }
        for i in np.lexsort((-sure * wrong, ~wrong))[:ROWS_SHOWN]
    ]
    return pd.DataFrame(rows)


def report(job: Job, threshold: float) -> tuple[gr.Column, str, str]:
    """What the file's own labels say of the answers: counts, classes, confusion matrix."""
    labels = job.labels()
    known = labels >= 0
    if not known.any():
        return gr.Column(visible=False), "", ""
    labels, shares, names = labels[known], job.probabilities[known], job.opened.names
    matrix = confusion_matrix(labels, shares.argmax(axis=1), len(names))
    numbers = tiles(consequences(labels, shares, threshold))
    return gr.Column(visible=True), numbers, confusion_table(matrix, names)


def many_messages_tab(
    opened: Opened, threshold: gr.Slider, tabs: gr.Tabs, to_open: list[gr.components.Component]
) -> None:
    def look(file: str | None) -> tuple[Any, ...]:
        """The file's columns to choose from, the guessed ones chosen."""
        empty = gr.Dropdown(choices=[], value=None, interactive=False)
        if file is None:
            return empty, empty, note(HINT)
        try:
            read = Job(opened, Path(file))
        except DataError as error:
            return empty, empty, note(str(error), "problem")
        names = [(visible(name), name) for name in read.table.columns]
        text_column = gr.Dropdown(names, value=read.text_column, interactive=True)
        names.insert(0, (NO_LABELS, ""))
        labels = gr.Dropdown(names, value=read.label_column or "", interactive=True)
        return text_column, labels, note(f"{read.name}: {len(read.texts):,} rows.")

    def classify_rows(
        file: str | None, text_column: str | None, label_column: str, threshold: float
    ) -> Iterator[dict[Any, Any]]:
        """How far the classification is, then its tables."""
        if not file:
            yield {problem: note("There is no file yet: choose one first.", "problem")}
            return
        try:
            new = Job(opened, Path(file), text_column)
        except DataError as error:
            yield {problem: note(str(error), "problem")}
            return
        new.label_column = label_column or None
        yield {job: new, problem: "", answers: None, measured: gr.Column(visible=False)}
        for _ in new.run():
            yield {state: status(new, threshold)}
        yield show(new, threshold)

    def show(done: Job | None, threshold: float) -> dict[Any, Any]:
        """What is done, perhaps of a job that was stopped."""
        if done is None or not done.num_done:
            return {as_csv: gr.Button(interactive=False)}
        tables = dict(zip([measured, numbers, matrix], report(done, threshold), strict=True))
        tables |= {state: status(done, threshold), answers: rows_shown(done, threshold)}
        return tables | {as_csv: gr.Button(interactive=True)}

    def pick(done: Job, event: gr.SelectData) -> tuple[str, float, gr.Tabs]:
        return *opening(done.texts[int(event.row_value[0]) - 1]), gr.Tabs(selected="one")

    def classify_for_client(file: str, text_column: str = "", threshold: float = 0) -> str:
        """Classify every row of a CSV, TSV, JSON lines, Parquet, Excel or text file (a message a
        line).

        Gives a CSV file with all rows and columns, and the columns `predicted_label`,
        `probability` and `probability of ...` each label added. Where the column with the texts is
        not named, it is guessed. Below the threshold the label is `undecided`.
        """
        try:
            sent = Job(opened, Path(file), text_column)
        except DataError as error:
            raise refusal(str(error)) from None
        for _ in sent.run():
            pass
        return str(sent.write(threshold))

    job = gr.State()
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            file = gr.File(
                label="File of messages", file_types=FILE_TYPES, height=150, elem_id="upload"
            )
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
            as_csv = gr.Button("Download CSV", size="sm", interactive=False)
            made_file = gr.DownloadButton(visible="hidden", elem_id="made")
            answers = gr.Dataframe(
                label="Click a row for its words; wrong answers come first, the surest ahead",
                headers=["row", "message", "answer", "sure %", "true label"],
                datatype=["number", "str", "str", "number", "str"],
                interactive=False,
                max_height=420,
                show_search="search",
                column_widths=["11%", "39%", "18%", "14%", "18%"],
                buttons=["fullscreen"],
                wrap=True,
                elem_id="table",
            )
    with gr.Column(visible=False, elem_id="report") as measured:
        gr.Markdown("## Measured by the file's own labels")
        numbers = gr.HTML()
        gr.Markdown("A row for each true class, a column for each likeliest class:")
        matrix = gr.HTML()

    file.change(look, file, [column, label_column, problem], **QUIET)
    shown = [state, answers, measured, numbers, matrix, as_csv]
    # A large file keeps one core busy; the other is for messages.
    one_at_a_time = {"concurrency_limit": 1, "concurrency_id": "files"}
    run = start.click(
        classify_rows,
        [file, column, label_column, threshold],
        [problem, job, *shown],
        trigger_mode="multiple",  # also while a stopped one still ends
        api_visibility="private",
        show_progress_on=problem,
        **one_at_a_time,
    )
    inputs = [job, threshold]
    stop.click(show, inputs, shown, cancels=run, **QUIET)
    threshold.change(show, inputs, shown, trigger_mode="always_last", **QUIET)
    answers.select(pick, job, [*to_open, tabs], **QUIET)
    # The file is made at the click, so that it is that of the moment, and then handed over.
    made = as_csv.click(
        lambda done, at: str(done.write(at)),
        inputs,
        made_file,
        api_visibility="private",
        show_progress_on=as_csv,
    )
    made.success(None, js="() => setTimeout(() => document.querySelector('#made').click(), 200)")

    # What programs call has widgets of its own, which nobody sees.
    with gr.Row(visible=False):
        sent = [gr.File(label="file", file_types=FILE_TYPES), gr.Textbox(""), gr.Number(0)]
        gr.Button().click(
            classify_for_client,
            sent,
            gr.File(label="classified"),
            api_name="classify_file",
            **one_at_a_time,
        )
