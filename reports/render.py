"""Filling a page: one template environment, in which every value is escaped."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

from dpaudit.privacy import rounding
from dpaudit.reports.text import capitalized, counted, decimal_text, factor, p_equals, p_value, plain_value, seconds

TEMPLATES = Path(__file__).resolve().parent / "templates"


def render(template: str, **values: Any) -> str:
    """Fill a template of ``templates/``; every value is escaped."""
    page: str = _environment().get_template(template).render(css=_css(), **values)
    return page


@functools.cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.globals["infinity"] = math.inf
    environment.filters.update(
        most=rounding.upper_text,
        least=rounding.lower_text,
        about=rounding.nearest_text,
        exact=rounding.exact_text,
        decimal=decimal_text,
        percent_most=rounding.percent_upper,
        percent_least=rounding.percent_lower,
        percent_about=rounding.percent_text,
        p=p_value,
        p_equals=p_equals,
        seconds=seconds,
        factor=factor,
        counted=counted,
        plain=plain_value,
        capitalize_first=capitalized,
    )
    return environment


@functools.cache
def _css() -> Any:
    from markupsafe import Markup

    return Markup((TEMPLATES / "base.css").read_text(encoding="utf-8"))
