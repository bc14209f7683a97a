"""Time and memory over length as a picture: one list of shapes, written as SVG or painted as PNG."""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

from omnimamba_cli.engine.bench_rows import GIB, Row

WIDTH, HEIGHT = 1080, 560  # pixels of the SVG; the PNG has twice as many a side
LEFT, TOP, PANEL_W, PANEL_H, GAP = 64, 56, 440, 330, 84
FONT = 13
INK, GRID = "#222222", "#dddddd"
COLORS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#e377c2", "#7f7f7f", "#bcbd22")
Anchor = Literal["start", "middle", "end"]


@dataclass(frozen=True)
class Stroke:
    """A line through points."""

    points: tuple[tuple[float, float], ...]
    color: str
    width: float = 1.0
    dashed: bool = False


@dataclass(frozen=True)
class Dot:
    """A filled circle."""

    x: float
    y: float
    color: str


@dataclass(frozen=True)
class Label:
    """A line of text; y is its middle."""

    x: float
    y: float
    text: str
    anchor: Anchor = "start"
    color: str = INK


Shape = Stroke | Dot | Label


@dataclass(frozen=True)
class Curve:
    """One system's values over length."""

    name: str
    points: tuple[tuple[float, float], ...]
    dashed: bool


def draw(rows: Sequence[Row], suffix: str) -> bytes:
    """The plot of some rows as a file: ".svg" or ".png"."""
    drawn = shapes(rows)
    return svg(drawn).encode() if suffix == ".svg" else png(drawn)


def time_curves(rows: Sequence[Row]) -> list[Curve]:
    """Milliseconds a step: at every sampled position, or where there are none, at the length."""

    def points(row: Row) -> list[tuple[float, float]]:
        sampled = [(s.position + 1.0, 1e3 * s.timing.median) for s in row.samples]
        if sampled or row.step_s is None or not row.seq_len:
            return sampled
        return [(float(row.prefix + row.seq_len), 1e3 * row.step_s)]

    return _curves(rows, points)


def memory_curves(rows: Sequence[Row]) -> list[Curve]:
    """GiB in use: at every sampled position, or where there are none, at the length."""

    def points(row: Row) -> list[tuple[float, float]]:
        sampled = [(s.position + 1.0, s.memory.main / GIB) for s in row.samples if s.memory.main]
        main = row.memory.main if row.memory else None
        if sampled or not main or not row.seq_len:
            return sampled
        return [(float(row.prefix + row.seq_len), main / GIB)]

    return _curves([row for row in rows if row.method != "computed"], points)


def _curves(rows: Sequence[Row], points: Callable[[Row], list[tuple[float, float]]]) -> list[Curve]:
    found = []
    for name in dict.fromkeys(row.system for row in rows):
        mine = [row for row in rows if row.system == name]
        # a position that two lengths share is shown once, as the longer run measured it
        by_length = dict(point for row in sorted(mine, key=lambda r: r.seq_len or 0) for point in points(row))
        if by_length:
            found.append(Curve(name, tuple(sorted(by_length.items())), mine[0].method == "computed"))
    return found


def shapes(rows: Sequence[Row]) -> list[Shape]:
    """Two panels with logarithmic axes, and a legend."""
    names = list(dict.fromkeys(row.system for row in rows))
    colors = {name: COLORS[i % len(COLORS)] for i, name in enumerate(names)}
    first = next(iter(rows), None)
    title = (
        "" if first is None else f"{first.machine.name}, {str(first.dtype).removeprefix('torch.')}, batch {first.batch}"
    )
    drawn: list[Shape] = [Label(LEFT, 18, title)]
    drawn += panel(time_curves(rows), colors, LEFT, "ms a token over length in tokens")
    drawn += panel(memory_curves(rows), colors, LEFT + PANEL_W + GAP, "peak memory, GiB, over length in tokens")
    for i, name in enumerate(names):
        x, y = LEFT + (i % 4) * 250, TOP + PANEL_H + 60 + (i // 4) * 24
        dashed = any(row.method == "computed" for row in rows if row.system == name)
        drawn += [Stroke(((x, y), (x + 26, y)), colors[name], 2.5, dashed), Label(x + 34, y, name)]
    return drawn


def panel(curves: Sequence[Curve], colors: dict[str, str], left: float, title: str) -> list[Shape]:
    """One pair of axes with its curves."""
    drawn: list[Shape] = [Label(left, TOP - 16, title)]
    points = [point for curve in curves for point in curve.points]
    if not points:
        return [*drawn, Label(left, TOP + 20, "nothing measured")]
    x_low, x_high = _decades([x for x, _ in points])
    y_low, y_high = _decades([max(y, 1e-6) for _, y in points])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - x_low) / (x_high - x_low)
        up = (math.log10(max(y, 1e-6)) - y_low) / (y_high - y_low)
        return round(left + across * PANEL_W, 1), round(TOP + (1 - up) * PANEL_H, 1)

    bottom, right = TOP + PANEL_H, left + PANEL_W
    for power in range(math.ceil(x_low), math.floor(x_high) + 1):
        x = place(10.0**power, 10**y_low)[0]
        drawn += [Stroke(((x, TOP), (x, bottom)), GRID), Label(x, bottom + 16, _power(power), "middle")]
    for power in range(math.ceil(y_low), math.floor(y_high) + 1):
        y = place(10**x_low, 10.0**power)[1]
        drawn += [Stroke(((left, y), (right, y)), GRID), Label(left - 8, y, _power(power), "end")]
    drawn.append(Stroke(((left, TOP), (left, bottom), (right, bottom)), INK))
    for curve in curves:
        spots = tuple(place(*point) for point in curve.points)
        drawn.append(Stroke(spots, colors[curve.name], 2.5, curve.dashed))
        if not curve.dashed:
            drawn += [Dot(x, y, colors[curve.name]) for x, y in spots]
    return drawn


def _decades(values: Sequence[float]) -> tuple[float, float]:
    """Powers of ten around some values, in thirds, at least one whole decade apart."""
    low = math.floor(3 * math.log10(min(values)) - 0.2) / 3
    high = math.ceil(3 * math.log10(max(values)) + 0.2) / 3
    if high - low < 1:
        low, high = math.floor(low), math.floor(low) + max(1, math.ceil(high - math.floor(low)))
    return low, high


def _power(power: int) -> str:
    return f"{10**power:,}" if power >= 0 else f"{10.0**power:.{-power}f}"


def svg(drawn: Sequence[Shape]) -> str:
    """The shapes as an SVG document."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="sans-serif" font-size="{FONT}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for shape in drawn:
        match shape:
            case Stroke():
                points = " ".join(f"{x:g},{y:g}" for x, y in shape.points)
                dash = ' stroke-dasharray="7 5"' if shape.dashed else ""
                style = f'fill="none" stroke="{shape.color}" stroke-width="{shape.width:g}"{dash}'
                lines.append(f'<polyline points="{points}" {style}/>')
            case Dot():
                lines.append(f'<circle cx="{shape.x:g}" cy="{shape.y:g}" r="3.5" fill="{shape.color}"/>')
            case Label():
                lines.append(
                    f'<text x="{shape.x:g}" y="{shape.y:g}" dy="0.35em" text-anchor="{shape.anchor}" '
                    f'fill="{shape.color}">{escape(shape.text)}</text>'
                )
    return "\n".join([*lines, "</svg>", ""])


def png(drawn: Sequence[Shape], scale: int = 2) -> bytes:
    """The shapes painted, `scale` pixels for one of the SVG."""
    image = Image.new("RGB", (WIDTH * scale, HEIGHT * scale), "white")
    brush, font = ImageDraw.Draw(image), ImageFont.load_default(FONT * scale)
    anchors = {"start": "lm", "middle": "mm", "end": "rm"}
    for shape in drawn:
        match shape:
            case Stroke():
                points = [(x * scale, y * scale) for x, y in shape.points]
                width = round(shape.width * scale)
                for start, end in pairwise(points):
                    for piece in _dashes(start, end, 7 * scale, 5 * scale) if shape.dashed else [(start, end)]:
                        brush.line(piece, fill=shape.color, width=width)
            case Dot():
                x, y, r = shape.x * scale, shape.y * scale, 3.5 * scale
                brush.ellipse((x - r, y - r, x + r, y + r), fill=shape.color)
            case Label():
                spot = (shape.x * scale, shape.y * scale)
                brush.text(spot, shape.text, fill=shape.color, font=font, anchor=anchors[shape.anchor])
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def _dashes(
    start: tuple[float, float], end: tuple[float, float], on: float, off: float
) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Pieces of a line, `on` long and `off` apart."""
    length = math.dist(start, end)

    def at(distance: float) -> tuple[float, float]:
        share = min(distance, length) / length
        return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])

    count = math.ceil(length / (on + off)) if length else 0
    return [(at(i * (on + off)), at(i * (on + off) + on)) for i in range(count)]
