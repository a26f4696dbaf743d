"""Pictures in a page: intervals and curves as inline SVG that fits its place, with the words around it as text.

Lines are drawn in a box of 100 x 100 that is stretched to the place it has (a phone or a screen); text is no part of the
picture, so that it is never stretched and can be read aloud and found.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline_steps.page_style import Html, count, html, joined

POINTS_DRAWN = 400  # of a curve; more are averaged, as the eye would

STYLE = """
.interval { height: 1.6rem; overflow: hidden } .interval path, .plot path { vector-effect: non-scaling-stroke; fill: none }
.chart { display: grid; grid-template: 12rem auto / auto 1fr; gap: .2rem .5rem; margin: .4rem 0 0 }
.chart .plot { grid-area: 1 / 2; height: 100%; overflow: visible }
.axis { position: relative; color: var(--soft); font-size: .8rem; font-variant-numeric: tabular-nums }
.axis.y { grid-area: 1 / 1; min-width: 2.6rem } .axis.x { grid-area: 2 / 2; height: 1.3rem }
.axis span { position: absolute; white-space: nowrap } .axis.y span { right: 0; transform: translateY(-50%) }
.axis.x span { transform: translateX(-50%) } .axis.x span:first-child { transform: none }
.axis.x span:last-child { transform: translateX(-100%) }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .9rem; color: var(--soft); margin: 0 }
.line-key { display: inline-block; width: 1.4em; border-top: .2em solid; vertical-align: middle; margin-right: .4em }
"""


@dataclass(frozen=True)
class Curve:
    """A line: points (x, y) in the order of x, and the CSS colour that it has. `dots`: each point is marked."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str
    dots: bool = False


def interval(
    low: float, high: float, value: float, reach: float, colour: str, margin: float | None, label: str
) -> Html:
    """An interval around `value` on an axis from -reach to +reach with zero in the middle, and a mark at `margin`."""

    def x(number: float) -> str:
        return f"{max(1.0, min(99.0, 50 + 48 * number / reach if reach else 50)):.2f}"

    marks = ["<path d='M50 0V100' stroke='var(--soft)' stroke-width='1'/>"]
    if margin is not None:
        marks.append(f"<path d='M{x(margin)} 0V100' stroke='var(--look)' stroke-width='2' stroke-dasharray='3 3'/>")
    marks.append(f"<path d='M{x(low)} 50H{x(high)}' stroke='{colour}' stroke-width='4' stroke-opacity='.45'/>")
    marks.append(f"<path d='M{x(value)} 50h0' stroke='{colour}' stroke-width='11' stroke-linecap='round'/>")
    return Html(
        f"<svg class='interval' viewBox='0 0 100 100' preserveAspectRatio='none' role='img' aria-label='{html(label)}'>"
        f"{''.join(marks)}</svg>"
    )


def curves(lines: Sequence[Curve], x_name: str, label: str, mark: tuple[float, str] | None = None) -> Html:
    """The lines on common axes, with a legend; `mark` is a place on the x axis and what is there."""
    drawn = [line for line in lines if line.points]
    points = [point for line in drawn for point in line.points]
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    ticks = _ticks(min(y for _, y in points), max(y for _, y in points))
    low, high = ticks[0], ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        return 100 * (x - left) / ((right - left) or 1), 100 * (1 - (y - low) / (high - low))

    shapes = [f"<path d='M0 {place(left, tick)[1]:.2f}H100' stroke='var(--line)'/>" for tick in ticks]
    legend = [_legend(line.colour, line.name) for line in drawn]
    if mark:
        x = place(mark[0], low)[0]
        shapes.append(f"<path d='M{x:.2f} 0V100' stroke='var(--look)' stroke-width='1.5' stroke-dasharray='4 4'/>")
        legend.append(_legend("var(--look)", mark[1]))
    for line in drawn:
        places = [place(x, y) for x, y in _thinned(line.points)]
        path = "L".join(f"{x:.2f} {y:.2f}" for x, y in places)
        shapes.append(f"<path d='M{path}' stroke='{line.colour}' stroke-width='2' stroke-linejoin='round'/>")
        if line.dots or len(places) == 1:
            dots = "".join(f"M{x:.2f} {y:.2f}h0" for x, y in places)
            shapes.append(f"<path d='{dots}' stroke='{line.colour}' stroke-width='7' stroke-linecap='round'/>")
    y_axis = joined(
        Html(f"<span style='top:{place(left, tick)[1]:.2f}%'>{_short(tick, high - low)}</span>") for tick in ticks
    )
    x_ticks = list(dict.fromkeys((left, (left + right) / 2, right))) if right > left else [left]
    x_axis = joined(
        Html(f"<span style='left:{place(tick, low)[0]:.2f}%'>{count(round(tick))}</span>") for tick in x_ticks
    )
    return Html(
        f"<figure class='curves'><p class='legend'>{joined(legend)}</p><div class='chart'>"
        f"<div class='axis y' aria-hidden='true'>{y_axis}</div>"
        f"<svg class='plot' viewBox='0 0 100 100' preserveAspectRatio='none' role='img' aria-label='{html(label)}'>"
        f"{''.join(shapes)}</svg><div class='axis x' aria-hidden='true'>{x_axis}</div></div>"
        f"<figcaption class='soft'>{html(x_name)}</figcaption></figure>"
    )


def _legend(colour: str, name: str) -> Html:
    return Html(f"<span><span class='line-key' style='border-color:{colour}'></span>{html(name)}</span>")


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers from below `low` to above `high`."""
    span = max(high - low, 1e-6 * max(abs(low), abs(high), 1.0))
    step = 10 ** math.floor(math.log10(span / 2))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * number for number in range(first, max(last, first + 1) + 1)]


def _short(number: float, span: float) -> str:
    """A tick's label with as many digits as tell it from its neighbours."""
    digits = max(0, 1 - math.floor(math.log10(span)))
    return f"{number:,.{digits}f}"


def _thinned(points: Sequence[tuple[float, float]]) -> Iterable[tuple[float, float]]:
    size = math.ceil(len(points) / POINTS_DRAWN)
    for start in range(0, len(points), size):
        group = points[start : start + size]
        yield sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)
