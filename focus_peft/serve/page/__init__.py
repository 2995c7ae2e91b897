"""The page at `/`, for browsers on this machine (`focus-peft serve --page`). It needs gradio."""

import os


os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
os.environ["GRADIO_RUN_HISTORY"] = "False"  # what was asked is not kept in the browser

from .page import Page


__all__ = ["Page"]
