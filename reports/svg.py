"""Drawing without global state: a matplotlib figure becomes SVG text whose colours are CSS variables.

Every figure is drawn twice, for a wide and for a narrow page, so that its letters stay readable on a phone; the page
shows one of the two. The same values give the same bytes.
"""

from __future__ import annotations

import dataclasses
import html
import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Name of a CSS variable to the colour drawn in its place; the stylesheet gives each a light and a dark value.
COLOURS = {
    "ink": "#16191d",
    "muted": "#525a63",
    "rule": "#d9dce0",
    "card": "#fffffe",
    "claim": "#17191e",
    "acc": "#1f5fbf",
    "emp": "#b5400a",
    "ceil": "#6b6f76",
    "alarm": "#f9dfdb",
    "third": "#11766b",
}
WIDE, NARROW = 680, 340
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


@dataclasses.dataclass(frozen=True, slots=True)
class Drawing:
    """A finished figure: two SVG texts, a title and a text alternative.

    Attributes
    ----------
    name : str
        Short identifier, unique on a page.
    title : str
        One line above the figure.
    alt : str
        What the figure shows, with its numbers, for readers who do not see it.
    wide, narrow : str
        SVG elements.
    caption : str
        One or two sentences below the figure.
    """

    name: str
    title: str
    alt: str
    wide: str
    narrow: str
    caption: str = ""

    def standalone(self) -> str:
        """The wide drawing as the text of an SVG file, in light colours."""
        text = self.wide
        for name, colour in COLOURS.items():
            text = text.replace(f"var(--{name})", colour)
        return text

    def _repr_html_(self) -> str:
        """Show the wide drawing in a notebook, on white, since a notebook has no page style of ours."""
        style = ";".join(f"--{name}:{colour}" for name, colour in COLOURS.items())
        text = html.escape(self.caption)
        return f'<div style="{style};background:#fff;max-width:{WIDE}px">{self.wide}<p>{text}</p></div>'


def draw(
    name: str,
    *,
    title: str,
    alt: str,
    caption: str = "",
    heights: tuple[int, int],
    paint: Callable[[Axes, bool], None],
) -> Drawing:
    """Call ``paint(axes, narrow)`` for both widths.

    Parameters
    ----------
    heights : (int, int)
        Height in pixels of the wide and of the narrow drawing.
    """
    return Drawing(
        name=name,
        title=title,
        alt=alt,
        caption=caption,
        wide=_render(f"{name}-w", alt, WIDE, heights[0], lambda axes: paint(axes, False)),
        narrow=_render(f"{name}-n", alt, NARROW, heights[1], lambda axes: paint(axes, True)),
    )


def quiet(axes: Any) -> None:
    """Remove the frame, keep a thin base line and a light grid."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(COLOURS["rule"])
    axes.tick_params(colors=COLOURS["muted"], length=0, labelsize=11)
    axes.grid(True, color=COLOURS["rule"], linewidth=0.7)
    axes.set_axisbelow(True)


def _render(key: str, alt: str, width: int, height: int, paint: Callable[[Any], None]) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.hashsalt": f"dpaudit-{key}",
        "svg.fonttype": "none",
        "font.family": "DejaVu Sans",
        "font.size": 11,
        "text.parse_math": False,
        "axes.unicode_minus": True,
        "axes.labelcolor": COLOURS["muted"],
        "text.color": COLOURS["ink"],
        "path.simplify": True,
    }
    with matplotlib.rc_context(settings):
        # 72 dots an inch make one SVG point one pixel of the drawing's own coordinate system.
        figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        paint(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _clean(buffer.getvalue(), key, alt, width, height)


def _clean(svg: str, key: str, alt: str, width: int, height: int) -> str:
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    opening = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        f' viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(alt, quote=True)}">'
    )
    svg = re.sub(r"^<svg[^>]*>", lambda _: opening, svg, count=1)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    svg = re.sub(r"font: ([^;\"]*?)'DejaVu Sans'[^;\"]*", lambda m: f"font: {m.group(1)}{_FONT}", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'( id=")', rf"\g<1>{key}-", svg)
    svg = re.sub(r"url\(#", f"url(#{key}-", svg)
    return re.sub(r'xlink:href="#', f'xlink:href="#{key}-', svg)
