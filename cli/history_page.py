"""The history as one self-contained HTML page: a chart for each metric, a point for each run, and the table."""

from collections.abc import Callable, Iterator
from html import escape

from cli import history
from cli.history import Run
from pipeline_steps.contract import metrics

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 880, 220, 64, 16, 12, 28
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --soft: #667; --line: #d8dce2; --tuned: #0b6bcb; --back: #fff }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e8eb; --soft: #9aa3ad; --line: #353b43; --tuned: #5aa9f5; --back: #16191d }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back) }
body { max-width: 960px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.05rem; margin: 1.6rem 0 .3rem } p { color: var(--soft); margin: .2rem 0 }
svg { width: 100%; height: auto } svg text { font-size: 12px; fill: var(--soft) }
.grid { stroke: var(--line) }
.tuned { stroke: var(--tuned); fill: none; stroke-width: 2 }
.base { stroke: var(--soft); fill: none; stroke-dasharray: 4 4 }
.point { fill: var(--tuned); stroke: var(--tuned); stroke-width: 2 } .refused { fill: var(--back) }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: 13px; width: 100% }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap }
td.n, th.n { text-align: right }
"""


def render(name: str, runs: list[Run]) -> str:
    """The page for the runs of the deployment `name`; `runs` the newest first."""
    shown = history.plotted(runs)
    charts = (
        "".join(_chart(metric, list(reversed(runs))) for metric in shown) or "<p>No run has been evaluated yet.</p>"
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>Runs of {escape(name)}</title><style>{STYLE}</style><h1>Runs of {escape(name)}</h1>"
        f"<p>{len(runs)} executions, the newest first in the table and last in the charts. Line: the tuned model; dashed: its "
        f"base; hollow point: refused by the gate.</p>{charts}"
        f'<h2>All of them</h2><div class="scroll"><table>{"".join(_rows(runs, shown))}</table></div></html>\n'
    )


def _chart(metric: str, runs: list[Run]) -> str:
    definition = metrics.DEFINITIONS[metric]
    points = [run for run in runs if run.value(metric) is not None]
    values = [run.value(metric, model) for run in points for model in ("base", "tuned")]
    known = [value for value in values if value is not None]
    low, high = min(known), max(known)
    margin = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    low, high = low - margin, high + margin

    def x(place: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (place + 0.5) / len(points)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    def line(model: str) -> str:
        found = [(x(place), run.value(metric, model)) for place, run in enumerate(points)]
        path = " ".join(f"{at:.1f},{y(value):.1f}" for at, value in found if value is not None)
        return f'<polyline class="{model}" points="{path}"/>'

    ticks = [low + (high - low) * share for share in (0.0, 0.5, 1.0)]
    grid = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.{definition.decimals}f}</text>'
        for tick in ticks
    )
    marks = "".join(_mark(run, metric, x(place), y) for place, run in enumerate(points))
    dates = "".join(
        f'<text x="{x(place):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{points[place].started:%Y-%m-%d}</text>'
        for place in sorted({0, len(points) // 2, len(points) - 1})
        if place in (0, len(points) - 1) or len(points) > 4
    )
    better = "" if definition.direction == "neither" else f"; {definition.direction} is better"
    return (
        f"<h2>{escape(definition.label)}</h2><p>{escape(definition.unit)}{better}</p>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(definition.label)} of each run">'
        f"{grid}{line('base')}{line('tuned')}{marks}{dates}</svg>"
    )


def _mark(run: Run, metric: str, x: float, y: Callable[[float], float]) -> str:
    value = run.value(metric)
    assert value is not None
    refused = " refused" if run.passed is False else ""
    base = history.figure(run.value(metric, "base"), metric)
    words = (
        f"{run.started:%Y-%m-%d %H:%M} {run.id}: {history.figure(value, metric)} (base {base}), {history.verdict(run)}"
    )
    return (
        f'<circle class="point{refused}" cx="{x:.1f}" cy="{y(value):.1f}" r="4"><title>{escape(words)}</title></circle>'
    )


def _rows(runs: list[Run], shown: list[str]) -> Iterator[str]:
    headings = ("started (UTC)", "execution", "state", "gate", "version", "dataset", "epochs", "learning rate")
    yield "<tr>"
    yield from (f"<th>{escape(heading)}</th>" for heading in headings)
    yield from (f'<th class="n">{escape(metrics.DEFINITIONS[name].label)}</th>' for name in shown)
    yield "</tr>"
    for run in runs:
        started, version = f"{run.started:%Y-%m-%d %H:%M}", run.package.rsplit("/", 1)[-1] if run.package else "-"
        epochs, rate = (run.parameters.get(name, "-") for name in ("Epoch", "LearningRate"))
        yield f'<tr title="{escape(run.reason, quote=True)}">'
        cells = (started, run.id, run.status, history.verdict(run), version, history.dataset(run), epochs, rate)
        yield from (f"<td>{escape(cell)}</td>" for cell in cells)
        yield from (f'<td class="n">{history.figure(run.value(name), name)}</td>' for name in shown)
        yield "</tr>"
