"""curves.svg of a run: loss on training and held-out data over steps, and the learning rate. From metrics.jsonl."""

import math
from collections.abc import Sequence
from pathlib import Path

from omnimamba_cli.engine.bench_plot import (
    COLORS,
    GAP,
    GRID,
    INK,
    LEFT,
    PANEL_H,
    PANEL_W,
    TOP,
    Dot,
    Label,
    Shape,
    Stroke,
    svg,
)
from omnimamba_cli.engine.safetensors_io import partial
from omnimamba_cli.train import metrics

Points = Sequence[tuple[float, float]]
TICKS = 5
MOST_POINTS = 1000  # of a curve; more are no longer told apart


def write(folder: Path) -> Path:
    """Draw the run's metrics.jsonl as it is now; returns the path of the drawing."""
    path = folder / "curves.svg"
    with partial(path) as temporary:
        temporary.write_text(svg(shapes(metrics.read(folder / "metrics.jsonl"))), encoding="utf-8")
    return path


def shapes(lines: Sequence[dict[str, float]]) -> list[Shape]:
    """Two panels: losses on a logarithmic axis, the learning rate on a linear one; a legend below."""
    names = sorted({name for line in lines for name in line if "loss" in name}, key=lambda n: (n.count("_"), n))
    curves = {name: _points(lines, name) for name in names}
    rates = {"lr": _points(lines, "lr")}
    drawn = _panel(curves, LEFT, "loss over steps", logarithmic=True)
    drawn += _panel(rates, LEFT + PANEL_W + GAP, "learning rate over steps", logarithmic=False)
    for i, name in enumerate(names):
        x, y = LEFT + (i % 4) * 250, TOP + PANEL_H + 60 + (i // 4) * 24
        drawn += [Stroke(((x, y), (x + 26, y)), COLORS[i % len(COLORS)], 2.5), Label(x + 34, y, name)]
    return drawn


def _points(lines: Sequence[dict[str, float]], name: str) -> Points:
    found = [(float(line["step"]), float(line[name])) for line in lines if name in line]
    return found[:: max(1, math.ceil(len(found) / MOST_POINTS))]


def _panel(curves: dict[str, Points], left: float, title: str, *, logarithmic: bool) -> list[Shape]:
    """One pair of axes with its curves."""
    drawn: list[Shape] = [Label(left, TOP - 16, title)]
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return [*drawn, Label(left, TOP + 20, "nothing measured")]

    def scaled(value: float) -> float:
        return math.log10(max(value, 1e-9)) if logarithmic else value

    heights = [scaled(y) for _, y in points]
    low, high = (min(heights), max(heights)) if logarithmic else (0.0, max(heights))
    high = high if high > low else low + 1
    last = max(x for x, _ in points)

    def place(x: float, height: float) -> tuple[float, float]:
        return round(left + x / last * PANEL_W, 1), round(TOP + (high - height) / (high - low) * PANEL_H, 1)

    bottom, right = TOP + PANEL_H, left + PANEL_W
    for i in range(TICKS + 1):
        height = low + i / TICKS * (high - low)
        x, y = place(last * i / TICKS, height)
        value = 10**height if logarithmic else height
        drawn += [Stroke(((left, y), (right, y)), GRID), Label(left - 8, y, f"{value:.3g}", "end")]
        drawn += [Stroke(((x, TOP), (x, bottom)), GRID), Label(x, bottom + 16, f"{last * i / TICKS:,.0f}", "middle")]
    drawn.append(Stroke(((left, TOP), (left, bottom), (right, bottom)), INK))
    for i, (name, curve) in enumerate(curves.items()):
        color = COLORS[i % len(COLORS)]
        spots = tuple(place(x, scaled(y)) for x, y in curve)
        drawn.append(Stroke(spots, color, 2.0))
        if name.startswith("eval") or len(spots) == 1:
            drawn += [Dot(x, y, color) for x, y in spots]
    return drawn
