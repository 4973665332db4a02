"""Load the models of a demo and serve its page."""

import argparse
import os
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dpdmd.demo.models import check_models, load_models
from dpdmd.demo.sources import Sources
from dpdmd.distributed.topology import local_device
from dpdmd.utils import out_of_memory
from dpdmd.utils.logging import logger, set_up_logging

if TYPE_CHECKING:
    from dpdmd.demo.comparison import Comparison

LOCAL = ("127.0.0.1", "::1")


def run(
    args: argparse.Namespace, sources: Sources, scorer_paths: Mapping[str, Mapping[str, Path]], bound: socket.socket
) -> None:
    """Load the models, and serve the page at `bound` until a signal ends the program.

    Raises:
        ValueError: a model or a scorer does not load.
        MemoryError: the device has too little memory.
    """
    set_up_logging(None, every_line=True)
    device = local_device()
    checked = check_models(args, sources, device)
    from dpdmd.demo.comparison import Comparison  # imports transformers
    from dpdmd.evaluation.scorers import build_scorer, check_scorer_contents

    check_scorer_contents(scorer_paths)
    with out_of_memory.explained("give fewer models, or --bf16"):
        models = load_models(checked)
        scorers = [build_scorer(name, paths, device) for name, paths in scorer_paths.items()]
    serve(Comparison(models, scorers, args.batch_size), bound)


def serve(comparison: "Comparison", bound: socket.socket) -> None:
    """Serve the page. Nothing is sent to another host, and no image or prompt is written to disk."""
    # Read when gradio and huggingface_hub are imported.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI

    from dpdmd.demo.page import CSS, build_page

    # Not `launch`, which requests its own address, through a proxy if one is set.
    app = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        build_page(comparison),
        path="/",
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        theme=gr.themes.Default(
            spacing_size="sm", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
        ),  # fonts of the browser's machine
        css=CSS,
    )
    host, port = bound.getsockname()[:2]
    if host not in LOCAL:
        logger.warning("everyone who reaches %s can use the page: it has no password", host)
    logger.info("the page is at http://%s:%d", f"[{host}]" if ":" in host else host, port)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    # In a thread, uvicorn leaves the signals to this program.
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, name="server")
    thread.start()
    thread.join()
