"""The page: a prompt and seeds above one row of images per model."""

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from dpdmd.demo import responses
from dpdmd.demo.comparison import Comparison
from dpdmd.demo.responses import MAX_LETTERS

FIRST_IMAGES = 4
MAX_WAITING = 64  # requests
CSS = """
.gradio-container { max-width: 1200px !important; margin: 0 auto; }
.gradio-container h1 { margin: 0; font-size: 1.4rem; font-weight: 700; }
.model h2 { margin: 0; font-size: 1.1rem; font-weight: 700; }
.model p, .about { margin: .1rem 0; font-size: .9rem; }
.controls { align-items: end; }
.images { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(150px, calc(25% - 6px)), 1fr)); gap: 6px; }
.images figure { margin: 0; }
.images label { display: block; cursor: zoom-in; position: relative; }
.images img { width: 100%; display: block; border-radius: 3px; }
.images img.small { image-rendering: pixelated; }
.images input { position: absolute; opacity: 0; }
.images input:focus-visible + img { outline: 3px solid #0b66c3; outline-offset: 1px; }
.images input:checked + img { position: fixed; inset: 0; z-index: 99; width: 100vw; height: 100vh; object-fit: contain;
  background: rgba(20, 20, 20, .9); cursor: zoom-out; }
.images figcaption { font-size: .75rem; text-align: center; }
.error { color: #b3261e; font-weight: 600; }
.prompt { overflow-wrap: anywhere; }
"""


def build_page(comparison: Comparison) -> gr.Blocks:
    """Return the page. One request is computed at a time, and the others wait in a queue."""
    with gr.Blocks(title="DP-DMD demo", analytics_enabled=False, fill_width=True) as page:
        _html(responses.title())
        with gr.Row(elem_classes="controls"):
            prompt = gr.Textbox(
                label=f"Prompt (at most {MAX_LETTERS:,} letters)", autofocus=True, min_width=300, scale=6, max_lines=6
            )
            num_images = gr.Number(FIRST_IMAGES, label="Images", precision=0, min_width=100)
            first_seed = gr.Number(0, label="First seed", precision=0, min_width=100)
            button = gr.Button("Generate", variant="primary", min_width=100)
        shown = [_html(responses.status("Type a prompt and press Enter."), elem_id="status")]
        for model in comparison.models:
            shown.append(_html(responses.model_row(model.name, model.sampler.settings)))
        _html(responses.about())
        gr.on(
            [button.click, prompt.submit, num_images.submit, first_seed.submit],
            _handler(comparison),
            [prompt, num_images, first_seed],
            shown,
            api_visibility="private",
            show_progress="minimal",
            show_progress_on=shown[:1],
            concurrency_limit=1,
            trigger_mode="always_last",  # a request while another of this user is computed is not lost
        )
    return page.queue(max_size=MAX_WAITING, api_open=False)


def _html(text: str, **options: str) -> gr.HTML:
    return gr.HTML(text, apply_default_css=False, **options)


def _handler(comparison: Comparison) -> Callable[..., Iterator[list[Any]]]:
    def handle(prompt: Any, num_images: Any, first_seed: Any) -> Iterator[list[Any]]:
        yield from responses.respond(comparison, prompt, num_images, first_seed)

    return handle
