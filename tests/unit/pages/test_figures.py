"""Figures: the same bytes each time, texts that stay text, colours that follow the page."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from llama.pages.figures import (
    MOST_POINTS,
    PALETTE,
    Bar,
    Figure,
    Series,
    lines,
    stacked_bars,
    style_sheet,
    thinned,
)

HOSTILE = '<script>alert(1)</script> & "$x^2$"'


def loss_figure(label: str = "_training") -> Figure:
    training = Series(label, [1, 2, 3, 4], [2.0, None, math.nan, 1.0])
    held_out = Series(
        "held-out", [0, 4], [2.5, 1.5], colour=1, points=True, best=(4, 1.5, "best 1.5 at step 4")
    )
    return lines([training, held_out], "step", "loss", title="Loss")


def memory_figure() -> Figure:
    bars = [Bar("planned", {"weights": 12.5, "context": 0.5}), Bar("measured", {"peak": 12.0})]
    return stacked_bars(bars, "GiB", limit=(24.0, "24 GiB"))


def texts(figure: Figure) -> list[str]:
    svg = ET.fromstring(figure.svg())
    return ["".join(element.itertext()) for element in svg.iter() if element.tag == "text"]


@pytest.mark.parametrize("make", [loss_figure, memory_figure])
def test_the_same_content_gives_the_same_bytes(make) -> None:
    figure = make()
    svg = figure.svg()
    assert svg == figure.svg() == make().svg()
    assert figure.png_bytes() == make().png_bytes()
    assert figure.png_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["日本", "run\x01\x1b[0m"])
def test_any_name_can_be_drawn_without_a_warning(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = loss_figure(name)
        assert figure.png_bytes() and figure.svg().encode()
        stacked_bars([Bar(name, {name: 1.0})], "GiB").png_bytes()


def test_it_does_so_in_another_process_whatever_the_user_s_settings_are(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("font.size: 30\naxes.grid: False\nsvg.fonttype: path\n")
    code = (
        "from tests.unit.pages.test_figures import loss_figure; print(loss_figure().svg(), end='')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(sys.path), "MPLCONFIGDIR": str(tmp_path), "HOME": "/"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == loss_figure().svg()


def test_text_stays_text_and_is_no_markup() -> None:
    figure = loss_figure(HOSTILE)
    found = texts(figure)
    assert HOSTILE in found  # no mathematics made of it either
    assert {"step", "loss", "Loss", "held-out (best 1.5 at step 4)"} <= set(found)
    assert "<script" not in figure.svg()
    assert "_training" in texts(loss_figure())


def test_colours_are_the_page_s() -> None:
    known = set(style_sheet()[0])
    for figure in (loss_figure(), memory_figure()):
        svg = figure.svg()
        assert not re.findall(r"#[0-9a-f]{6}\b", svg)
        assert {f"{name}" for name in re.findall(r"var\((--\w+)\)", svg)} <= known
    assert "var(--c0)" in loss_figure().svg() and "var(--c2)" in memory_figure().svg()


def test_no_two_colours_of_a_page_are_one() -> None:
    for values in style_sheet():
        assert len(set(values.values())) == len(values)


def test_every_data_colour_stands_out_from_its_page() -> None:
    """3 to 1, as WCAG 2.1 asks of graphics (success criterion 1.4.11)."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for values in style_sheet():
        page = luminance(values["--page"])
        for number in range(len(PALETTE)):
            low, high = sorted([page, luminance(values[f"--c{number}"])])
            assert (high + 0.05) / (low + 0.05) >= 3, (number, values)


def test_drawings_of_one_page_share_no_name_for_two_things() -> None:
    names: dict[str, str] = {}
    for figure in (loss_figure(), memory_figure(), loss_figure("other")):
        for element in ET.fromstring(figure.svg()).iter():
            if name := element.get("id"):
                assert names.setdefault(name, ET.tostring(element)) == ET.tostring(element)


def test_stacked_bars_say_their_totals_and_each_part_once() -> None:
    found = texts(memory_figure())
    assert {"planned", "measured", "13.00", "12.00", "24 GiB"} <= set(found)
    assert [found.count(name) for name in ("weights", "context", "peak")] == [1, 1, 1]


def test_thinning_keeps_ends_extremes_and_gaps() -> None:
    count = 50_000
    values: list[float | None] = [math.sin(i / 700) for i in range(count)]
    values[12_345], values[33_333], values[40_000] = 9.0, -9.0, None
    x, y = thinned(range(count), values)
    assert MOST_POINTS / 2 < len(x) <= 1.3 * MOST_POINTS
    assert x == sorted(set(x)) and (x[0], x[-1]) == (0, count - 1)
    assert y[x.index(12_345)] == 9.0 and y[x.index(33_333)] == -9.0 and None in y
    assert all(values[int(i)] == v for i, v in zip(x, y, strict=True))


def test_short_series_are_drawn_whole() -> None:
    assert thinned([1, 2], [None, math.inf]) == ([1, 2], [None, math.inf])


@pytest.mark.parametrize(
    "y", [[], [None], [1.0], [0.0, 0.0], [math.nan, math.inf]], ids=["none", "gap", "1", "0", "nan"]
)
@pytest.mark.parametrize("log_y", [False, True])
def test_little_data_is_drawn_too(y: list[float | None], log_y: bool) -> None:
    assert "<svg" in lines([Series("a", range(len(y)), y)], "step", "y", log_y=log_y).svg()


def test_a_logarithmic_axis_has_plain_numbers() -> None:
    figure = lines([Series("a", [1, 2, 3], [1e-5, 1e-3, 1.0])], "step", "rate", log_y=True)
    assert "0.001" in texts(figure) and not any("$" in text for text in texts(figure))
