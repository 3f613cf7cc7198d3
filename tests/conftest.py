"""Shared settings: quiet libraries, one thread a worker, a hypothesis profile without deadlines."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from hypothesis import settings

settings.register_profile("dpaudit", deadline=None, max_examples=25)
settings.load_profile("dpaudit")
