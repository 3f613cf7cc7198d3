"""Shared settings: quiet libraries, one thread a worker, a hypothesis profile without deadlines."""

from __future__ import annotations

import gc
import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# A shell that starts the tests in the background ignores SIGINT for them, and they test what Ctrl-C does.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from hypothesis import settings

settings.register_profile("dpaudit", deadline=None, max_examples=25)
settings.load_profile("dpaudit")


def pytest_collection_finish() -> None:
    """Take the modules that collection imported out of the collector's walks, which trainers start often."""
    gc.collect()
    gc.freeze()
