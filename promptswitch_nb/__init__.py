__version__ = "0.1.0"

import os

# Nothing is reported to anyone: read by huggingface_hub when it is first imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
