"""The page: search, recognise and read in the browser."""

import os

# Read by gradio: no telemetry, and no statistics after each request.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000000")
