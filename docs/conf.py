"""Sphinx configuration, and two directives that keep the reference complete by construction."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
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
nitpicky = True
# A word of a type, such as "ids", may name attributes of several classes. Roles must lead somewhere all the same.
suppress_warnings = ["ref.python"]

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
    """Names that a package lists as public, in its groups' order."""
    return [name for name in importlib.import_module(package).__all__ if not name.startswith("_")]


def groups(package: str) -> list[tuple[str, list[str]]]:
    """Titles and names of the groups in which a package lists its public names; the comments there are the titles."""
    source = inspect.getsource(importlib.import_module(package))
    found: list[tuple[str, list[str]]] = []
    for line in source[source.index("__all__ = [") :].partition("]")[0].splitlines():
        if title := re.match(r"\s+# (.+)", line):
            found.append((title[1], []))
        elif (name := re.match(r'\s+"(\w+)"', line)) and not name[1].startswith("_"):
            found[-1][1].append(name[1])
    return found


def public_values() -> dict[str, Any]:
    """Every public value by its dotted name."""
    return {f"{package}.{name}": getattr(importlib.import_module(package), name) for package in PACKAGES
            for name in public_names(package)}  # fmt: skip


def names_of_types(module: str) -> dict[str, Any]:
    """What names in a module's annotations stand for, also those that it imports for type checkers alone."""
    found = dict(vars(sys.modules[module]))
    source = inspect.getsource(sys.modules[module])
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dpaudit"):
            for alias in node.names:
                if alias.name not in found:
                    found[alias.name] = getattr(importlib.import_module(str(node.module)), alias.name)
    return found


def mentioned(value: Any) -> list[type]:
    """Classes of ours in the annotations of a function, or in the fields of a class."""
    texts = getattr(value, "__annotations__", {}).values()
    names = {name for text in texts for name in re.findall(r"\w+", text if isinstance(text, str) else "")}
    known = names_of_types(value.__module__) if names else {}
    classes = [known[name] for name in sorted(names) if inspect.isclass(known.get(name))]
    ours = [found for found in classes if found.__module__.startswith("dpaudit.")]
    return [found for found in ours if not found.__name__.startswith("_")]


def values(package: str) -> list[type]:
    """Classes that public values of a package take and return and nobody needs to import, and those in their fields."""
    module = importlib.import_module(package)
    public = [value for value in public_values().values() if inspect.isclass(value)]
    earlier = [found for name in PACKAGES[: PACKAGES.index(package)] for found in values(name)]
    found: list[type] = []
    waiting = [getattr(module, name) for name in public_names(package)]
    while waiting:
        for candidate in mentioned(waiting.pop(0)):
            if candidate not in (*public, *earlier, *found):
                found.append(candidate)
                waiting.append(candidate)
    return found


class PublicNames(Directive):
    """``public-names:: PACKAGE`` documents every public name of a package, then what these take and return."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Emit one autodoc directive for each name, under the title of its group."""
        package = self.arguments[0]
        module = importlib.import_module(package)
        lines = []
        for title, names in groups(package):
            lines += [f".. rubric:: {title}", ""]
            for name in names:
                kind = "class" if inspect.isclass(getattr(module, name)) else "function"
                lines += [f".. auto{kind}:: {package}.{name}", *["   :members:"] * (kind == "class"), ""]
        if others := values(package):
            lines += [".. rubric:: What these take and return", ""]
        for value in others:
            lines += [f".. autoclass:: {value.__module__}.{value.__name__}", "   :members:", ""]
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


def words_of_types(app: Any, env: Any, node: Any, content: Any) -> Any:
    """The words of a type, such as "sequence of str, optional", are prose and lead nowhere; a role must lead somewhere.

    Sphinx takes every word of a numpydoc type for a class. Only a role, such as ``:class:`Stage```, holds a literal.
    """
    if node.get("reftype") in ("class", "obj") and not isinstance(content, nodes.literal):
        return content
    return None


def setup(app: Any) -> dict[str, Any]:
    """Register the directives."""
    app.add_directive("public-names", PublicNames)
    app.connect("autodoc-process-docstring", escape_stars)
    app.connect("missing-reference", words_of_types)
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True}
