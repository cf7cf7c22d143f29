"""The page: four tabs around one classifier, from Gradio's own widgets, queue and API."""

from pathlib import Path

import gradio as gr
from about import about_tab, trained_on
from html_parts import note
from many_messages import many_messages_tab
from one_message import one_message_tab
from opened import Opened
from quality import quality_tab, threshold_slider

MADE_UP_WARNING = (
    "⚠️ **This classifier was trained on a few made-up messages**, because no real ones could be "
    "had: it shows that the page works; its answers and metrics mean nothing."
)

# The theme's own greys are too faint: those for light and dark pages.
GREYS = {
    "block_info_text_color": (600, 300),
    "block_label_text_color": (700, 200),
    "block_title_text_color": (700, 200),
    "body_text_color_subdued": (600, 300),
    "input_placeholder_color": (500, 400),
    "input_border_color": (500, 500),
    "checkbox_border_color": (500, 500),
}
FONT = ["system-ui", "sans-serif"]  # which a device has already: nothing is fetched from anywhere
THEME = gr.themes.Default(primary_hue="indigo", font=FONT, font_mono=FONT).set(
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
    button_primary_background_fill_dark="*primary_600",
    button_primary_background_fill_hover_dark="*primary_700",
    button_secondary_text_color="*neutral_800",
    **{name: f"*neutral_{light}" for name, (light, _) in GREYS.items()},
    **{f"{name}_dark": f"*neutral_{dark}" for name, (_, dark) in GREYS.items()},
)
HERE = Path(__file__).parent
LAUNCH = {
    "theme": THEME,
    "css_paths": HERE / "style.css",
    "js": (HERE / "page.js").read_text(encoding="utf-8"),
    "max_file_size": "50mb",
    "run_history": False,  # messages are not kept, not even in the reader's browser
    "footer_links": ["api", "settings"],
    "quiet": True,
    "prevent_thread_lock": True,
    "_frontend": False,  # no look at itself, after which a busy machine's page would give up
}


def build_page(folder: Path, beside: Path | None = None, data: Path | None = None) -> gr.Blocks:
    """The page of the classifier in a folder. Raises what `Opened` does.

    `beside` is another classifier's folder, whose answer is shown beside; `data` the file that
    the first was trained on.
    """
    opened = Opened(folder, data)
    second = Opened(beside) if beside else None
    # Uploads and results are deleted after an hour.
    with gr.Blocks(
        title="Fine-tuned GPT", analytics_enabled=False, delete_cache=(600, 3600)
    ) as page:
        gr.Markdown("# What does this GPT make of your message?")
        gr.HTML(note(summary(opened)))
        if opened.card.get("made_up_data"):
            gr.Markdown(MADE_UP_WARNING)
        threshold = threshold_slider()
        job = gr.BrowserState("", storage_key="classifier-page-job")  # so that a reload finds it
        with gr.Tabs() as tabs:
            with gr.Tab("One message", id="one"):
                message, open_after = one_message_tab(opened, second, threshold, page)
            with gr.Tab("Many messages"):
                many_messages_tab(opened, threshold, page, tabs, job, message, open_after)
            with gr.Tab("How good is it?"):
                quality_tab(opened, threshold)
            with gr.Tab("About"):
                about_tab(opened)
    # Whoever comes when 200 requests wait is told that the queue is full.
    return page.queue(max_size=200, default_concurrency_limit=2)


def summary(opened: Opened) -> str:
    """One line on what answers here."""
    line = f"{opened.config.model_name}, fine-tuned on {trained_on(opened)}, tells apart: "
    return line + ", ".join(opened.names[:12]) + (", …" if len(opened.names) > 12 else ".")
