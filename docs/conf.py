"""Sphinx configuration, and two directives that keep the reference complete by construction."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dpaudit

project = "dpaudit"
author = "dpaudit maintainers"
release = dpaudit.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "examples", "images"]
html_theme = "furo"
html_title = "dpaudit"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_class_signature = "mixed"
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
# Docstrings name private helpers and other libraries' objects freely; only missing documents are errors.
nitpicky = False
suppress_warnings = ["ref.python", "myst.xref_missing"]

PACKAGES = (
    "dpaudit",
    "dpaudit.certificates",
    "dpaudit.accounting",
    "dpaudit.auditing",
    "dpaudit.trainers",
    "dpaudit.attacks",
    "dpaudit.reports",
)


def public_names(package: str) -> list[str]:
    """Names that a package lists as public."""
    return sorted(name for name in importlib.import_module(package).__all__ if not name.startswith("_"))


class PublicNames(Directive):
    """``public-names:: PACKAGE`` documents every public name of a package."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Emit one autodoc directive for each name."""
        package = self.arguments[0]
        module = importlib.import_module(package)
        lines = []
        for name in public_names(package):
            value = getattr(module, name)
            if inspect.isclass(value):
                lines += [f".. autoclass:: {package}.{name}", "   :members:", ""]
            elif inspect.isroutine(value):
                lines += [f".. autofunction:: {package}.{name}", ""]
            else:
                lines += [f".. py:data:: {package}.{name}", "   :no-index:", "", f"   ``{value!r}``"[:200], ""]
        holder = nodes.container()
        self.state.nested_parse(StringList(lines, source=package), self.content_offset, holder)
        return holder.children


class CommandHelp(Directive):
    """``command-help::`` shows the help of every command."""

    def run(self) -> list[nodes.Node]:
        """Render each command's ``-h``."""
        import click

        from dpaudit.cli import COMMANDS, main

        found: list[nodes.Node] = []
        for name in sorted(COMMANDS):
            if importlib.util.find_spec(f"dpaudit.cli.{name}") is None:
                continue  # tests/test_docs.py fails on this; the pages build
            command = main.get_command(click.Context(main), name)
            assert command is not None
            parent = click.Context(main, info_name="dpaudit")
            context = click.Context(command, info_name=name, parent=parent, max_content_width=84, terminal_width=84)
            section = nodes.section(ids=[f"dpaudit-{name}"])
            section += nodes.title(text=f"dpaudit {name}")
            section += nodes.literal_block(text=command.get_help(context), language="text")
            found.append(section)
        return found


def escape_stars(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """``train(**options)`` in a docstring is code, and not the start of bold text."""
    lines[:] = [line.replace("**", r"\*\*") if line.count("**") % 2 else line for line in lines]


def setup(app: Any) -> dict[str, Any]:
    """Register the directives."""
    app.add_directive("public-names", PublicNames)
    app.connect("autodoc-process-docstring", escape_stars)
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True}
