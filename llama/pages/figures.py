"""Figures, as PNG and as SVG that stands in a page. The one importer of matplotlib.

Drawn small (4.6 inches wide, text of 10 points), so that it can be read on a phone. The SVG keeps
its text as text and takes its colours from the page: what is drawn in a colour of `PALETTE` or
`TONES` becomes a variable of CSS, which `llama/pages/page.html` sets for light and dark. A PNG is
in the light ones. The same content gives the same bytes: no date is in them, and no random name.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, TypeGuard

from llama.files.atomic import write_file

PALETTE = (
    ("#0072b2", "#5aaeea"),
    ("#d55e00", "#ff914d"),
    ("#00875f", "#35c99d"),
    ("#b5548c", "#e695c3"),
    ("#c78400", "#f2b83a"),
    ("#3a9ad9", "#97d6ff"),
    ("#7a7a00", "#d6d162"),
    ("#882255", "#dd74a0"),
    ("#4b3a9b", "#ada2f3"),
    ("#777777", "#ababab"),
)
"""Each for a light page and for a dark one; var(--c0) and on. The first seven are Okabe and Ito's
(https://jfly.uni-koeln.de/color/), made darker or lighter until they stand out from both."""
TONES = {
    "text": ("#1f2329", "#e6e9ed"),
    "muted": ("#59616b", "#a2abb5"),
    "line": ("#d3d9df", "#3b424b"),
    "page": ("#fefefe", "#14171a"),
}
"""The same for what is no data; var(--text) and on. No two colours of a light page are equal."""

WIDTH = 4.6
"""Inches, as the text sees it."""
MOST_POINTS = 400
"""Of one series that are drawn, about: more would not be told apart."""
LARGEST = 1e200
_POINTS_OF_A_BUCKET = 4
_LIGHT = {name: light for name, (light, _) in TONES.items()}
_SETTINGS: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _LIGHT["muted"],
    "axes.labelcolor": _LIGHT["text"],
    "axes.titlecolor": _LIGHT["text"],
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LIGHT["line"],
    "grid.linewidth": 0.6,
    "text.color": _LIGHT["text"],
    "text.parse_math": False,  # a run may be called $x$
    "xtick.color": _LIGHT["muted"],
    "xtick.labelcolor": _LIGHT["text"],
    "ytick.color": _LIGHT["muted"],
    "ytick.labelcolor": _LIGHT["text"],
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "figure.facecolor": _LIGHT["page"],
    "svg.fonttype": "none",
    "svg.hashsalt": "llama-lora",
}


@dataclass(frozen=True)
class Series:
    """One line of a plot. A `y` that is None, not finite or beyond LARGEST is a gap."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    colour: int = 0
    """Which of `PALETTE`, counted round."""
    faint: bool = False
    """Thin and pale: what a smoothed line of the same colour is made of. Not in the legend."""
    dashed: bool = False
    points: bool = False
    """Whether each value has a dot: for few of them."""
    best: tuple[float, float, str] | None = None
    """A value that is marked by a star: x, y, and the text that the legend has of it: among the
    lines it would hide some."""


@dataclass(frozen=True)
class Bar:
    """A bar of parts laid end to end, in the order of the mapping."""

    label: str
    parts: Mapping[str, float]


class Figure:
    """A drawing, made by one of the functions below."""

    def __init__(self, figure: Any, description: str) -> None:
        """`description` is what a reader is told who cannot see it."""
        self._figure = figure
        self._description = description
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # placed once: each further drawing would move it a little

    def png_bytes(self) -> bytes:
        """200 dots to the inch: sharp on a screen of two dots to the pixel."""
        return self._saved("png", dpi=200, metadata={"Software": None})

    def png(self, path: Path) -> None:
        """Write the PNG as one file. Raises `OSError`."""
        write_file(path, self.png_bytes())

    def svg(self) -> str:
        """An element to stand in a page, as wide as its place."""
        text = self._saved("svg", transparent=True, metadata={"Date": None}).decode()
        return _for_a_page(text, self._description)

    def _saved(self, kind: str, **options: Any) -> bytes:
        content = io.BytesIO()
        with _settings():
            self._figure.savefig(content, format=kind, bbox_inches=None, **options)
        return content.getvalue()


def lines(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    title: str = "",
    log_y: bool = False,
    height: float = 2.9,
) -> Figure:
    """Several lines over one x axis, long ones thinned. `log_y` holds where a value is above 0."""
    with _settings():
        figure, axes = _axes(height, title)
        drawn = [one for one in series if not one.faint]
        handles = []
        for one in series:
            x, y = thinned(one.x, one.y)
            colour = PALETTE[one.colour % len(PALETTE)][0]
            style: dict[str, Any] = {"linewidth": 1.5}
            style |= {"linewidth": 0.7, "alpha": 0.45} if one.faint else {}
            style |= {"linestyle": "--"} if one.dashed else {}
            style |= {"marker": "o", "markersize": 3.5} if one.points or len(x) == 1 else {}
            (line,) = axes.plot(*map(_with_gaps, (x, y)), color=colour, **style)
            if not one.faint:
                handles.append(line)
            if one.best is not None and all(map(_can_be_drawn, one.best[:2])):
                star = {"marker": "*", "markersize": 12, "markeredgecolor": _LIGHT["page"]}
                axes.plot(*([value] for value in one.best[:2]), color=colour, zorder=3, **star)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        values = [v for one in series for v in one.y if _can_be_drawn(v)]
        if log_y and any(v > 0 for v in values):
            axes.set_yscale("log", nonpositive="mask")
        _plain_numbers(axes, values, log_y)
        labels = [f"{one.label} ({one.best[2]})" if one.best else one.label for one in drawn]
        if len(drawn) > 1 or labels != [one.label for one in drawn]:
            _legend(figure, handles, labels)
        said = ", ".join(one.label for one in drawn)
        return Figure(figure, f"{title or y_label} by {x_label}: {said}")


def stacked_bars(
    bars: Sequence[Bar],
    x_label: str,
    *,
    title: str = "",
    limit: tuple[float, str] | None = None,
    number: Callable[[float], str] = "{:.2f}".format,
) -> Figure:
    """Horizontal bars, the first at the top, each with its total behind it; a part has one colour
    in all of them. `limit` is a line and its text, as what a GPU holds; `number` writes a total."""
    bars = [Bar(bar.label, _drawable(bar.parts)) for bar in bars]
    names = list(dict.fromkeys(name for bar in bars for name in bar.parts))
    rows_of_legend = math.ceil(len(names) / 2)
    with _settings():
        height = 0.85 + 0.5 * len(bars) + 0.22 * rows_of_legend + (0.25 if title else 0)
        figure, axes = _axes(height, title)
        handles: dict[str, Any] = {}
        totals = [sum(bar.parts.values()) for bar in bars]
        for row, bar in enumerate(bars):
            left = 0.0
            for name, size in bar.parts.items():
                colour = PALETTE[names.index(name) % len(PALETTE)][0]
                handles[name] = axes.barh(
                    row, size, left=left, height=0.62, color=colour,
                    edgecolor=_LIGHT["page"], linewidth=0.6,
                )  # fmt: skip
                left += size
            axes.annotate(
                number(left), (left, row), (4, 0), textcoords="offset points", va="center",
                fontsize=9.5,
            )  # fmt: skip
        axes.set_yticks(range(len(bars)), [_short(bar.label, 22) for bar in bars])
        axes.set_ylim(len(bars) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        most = max([*totals, limit[0] if limit else 0.0], default=0.0)
        axes.set_xlim(0, most * 1.16 or 1)
        if limit is not None:
            axes.axvline(limit[0], color=_LIGHT["text"], linewidth=1.2, linestyle="--")
            axes.annotate(
                limit[1], (limit[0], 1), (-3, 2), xycoords=("data", "axes fraction"),
                textcoords="offset points", ha="right", va="bottom", fontsize=9.5,
            )  # fmt: skip
        axes.set_xlabel(x_label)
        _legend(figure, [handles[name] for name in names], names)
        said = "; ".join(
            f"{bar.label}: {number(total)}" for bar, total in zip(bars, totals, strict=True)
        )
        return Figure(figure, f"{title or x_label}: {said}")


def thinned(
    x: Sequence[float], y: Sequence[float | None], most: int = MOST_POINTS
) -> tuple[list[float], list[float | None]]:
    """At most about `most` of the points, in their order: of each stretch of equal length the
    first, the lowest, the highest and the last, and a gap where it has one. So no peak is lost."""
    if len(x) <= most:
        return list(x), list(y)
    size = math.ceil(len(x) / max(1, most // _POINTS_OF_A_BUCKET))
    kept: list[int] = []
    for start in range(0, len(x), size):
        bucket = range(start, min(start + size, len(x)))
        finite = [(v, i) for i in bucket if _can_be_drawn(v := y[i])]
        finite_at = {i for _, i in finite}
        gap = next((i for i in bucket if i not in finite_at), None)
        chosen = {bucket[0], bucket[-1]} | ({gap} if gap is not None else set())
        if finite:
            chosen |= {min(finite)[1], max(finite)[1]}
        kept += sorted(chosen)
    return [x[i] for i in kept], [y[i] for i in kept]


def _can_be_drawn(value: float | None) -> TypeGuard[float]:
    """Whether matplotlib can lay out an axis that has it: of larger ones the differences are not
    finite."""
    return value is not None and abs(value) <= LARGEST  # false for NaN


def _drawable(parts: Mapping[str, float]) -> dict[str, float]:
    return {name: size if _can_be_drawn(size) else 0.0 for name, size in parts.items()}


def _with_gaps(values: Sequence[float | None]) -> list[float]:
    return [value if _can_be_drawn(value) else math.nan for value in values]


def style_sheet() -> tuple[dict[str, str], dict[str, str]]:
    """The variables of CSS that the SVGs name, with their values on a light and a dark page."""
    pairs = {f"c{number}": pair for number, pair in enumerate(PALETTE)} | TONES
    light = {f"--{name}": pair[0] for name, pair in pairs.items()}
    return light, {f"--{name}": pair[1] for name, pair in pairs.items()}


@contextmanager
def _settings() -> Iterator[None]:
    """Ours, whatever the user's own matplotlibrc says. A script that the font lacks is no matter:
    the SVG's text is drawn by the reader's own fonts."""
    import matplotlib  # takes most of a second, and few runs of a command draw

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def _axes(height: float, title: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure as MatplotlibFigure

    figure = MatplotlibFigure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    if title:
        axes.set_title(title, loc="left", fontweight="bold")
    return figure, axes


def _plain_numbers(axes: Any, values: Sequence[float], log_y: bool) -> None:
    """2e-05 and 0.5 as they are written elsewhere: matplotlib's own powers are in its mathematics,
    which is off."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(_written))
    axes.yaxis.set_major_formatter(FuncFormatter(_written))
    axes.yaxis.set_minor_formatter(NullFormatter())
    if log_y and values and max(values) < 10 * max(min(values), 1e-300):  # else it has no labels
        axes.yaxis.set_minor_formatter(FuncFormatter(_written))


def _written(value: float, _position: int | None = None) -> str:
    is_plain = 1000 <= abs(value) < 1e15 and value == int(value)
    return f"{value:,.0f}" if is_plain else f"{value:.4g}"


def _legend(figure: Any, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Below the axes. The texts are put in afterwards: matplotlib leaves out what begins with _."""
    columns = 2 if max(map(len, labels)) <= 30 else 1
    legend = figure.legend(
        handles, [f"part {i}" for i in range(len(labels))], loc="outside lower left",
        ncols=columns, handlelength=1.4, columnspacing=1.2, borderaxespad=0.2,
    )  # fmt: skip
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_text(_short(label, 60 // columns))


def _short(text: str, most: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _for_a_page(svg: str, description: str) -> str:
    """What matplotlib wrote, as an element of a page that holds several: its colours by variables,
    its width by its place, without names that another drawing has too."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"\s*<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"\s*<style[^>]*>.*?</style>", "", body, flags=re.DOTALL)
    used = set(re.findall(r"#([\w-]+)[\")]", body))
    body = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", body)
    light, _ = style_sheet()
    colours = {value: f"var({name})" for name, value in light.items()}
    body = re.sub(r"#[0-9a-f]{6}\b", lambda found: colours.get(found[0], found[0]), body)
    body = re.sub(r"font-family: [^;\"]*", "font-family: system-ui, sans-serif", body)
    body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.DOTALL)
    head, rest = body.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    label = f'role="img" aria-label="{escape(description)}"'
    return f'<svg class="figure" {box[0]} {label} xmlns:xlink="http://www.w3.org/1999/xlink">{rest}'
