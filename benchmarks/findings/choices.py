"""What was chosen on public data, kept in a file, so that a resumed row does not search again."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from typing import Any

from findings import pretrained


def remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keep a function's results, by its name and arguments, for this process and the next ones.

    Results are plain values; lists come back as tuples. Trials (``Options.steps``) are not kept on disk.
    """

    @functools.cache
    def found(*arguments: Any) -> Any:
        if any(getattr(argument, "steps", None) is not None for argument in arguments):
            return function(*arguments)
        name = f"{function.__module__}.{function.__name__}{arguments!r}"
        path = pretrained.FOLDER / "choices.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        if name not in known:
            value = function(*arguments)
            known = {**(json.loads(path.read_text()) if path.exists() else {}), name: value}
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps(known, indent=1))
            temporary.replace(path)
        return _tuples(known[name])

    return found


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_tuples(part) for part in value)
    if isinstance(value, dict):
        return {key: _tuples(part) for key, part in value.items()}
    return value
