"""report.html: one self-contained page, the verdict first. Nothing in it comes from elsewhere, and data is always text."""

from collections.abc import Sequence
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; --text: #1d2430; --soft: #5b6675; --line: #d9dee5; --page: #fff; --card: #f6f8fa;
  --good: #1a7f37; --bad: #c62828; --base: #8a94a3; --tuned: #0b6bcb }
@media (prefers-color-scheme: dark) { :root { --text: #e6eaf0; --soft: #9aa5b4; --line: #323a46; --page: #12161c;
  --card: #1a2028; --good: #4cc26b; --bad: #ff7b72; --base: #7d8896; --tuned: #58a6ff } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem 1rem 4rem; background: var(--page); color: var(--text);
  font: 16px/1.55 system-ui, sans-serif }
h1 { font-size: 1.6rem; margin: 0 0 .25rem } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem }
.verdict { border-left: .4rem solid; padding: .8rem 1rem; background: var(--card); border-radius: .3rem }
.passed { border-color: var(--good) } .refused { border-color: var(--bad) }
.passed h1 { color: var(--good) } .refused h1 { color: var(--bad) }
ul { margin: .4rem 0 0; padding-left: 1.2rem } .soft { color: var(--soft) }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .45rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.answer { background: var(--card); border-radius: .4rem; padding: .8rem 1rem; margin: 0 0 1rem }
.answer pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0 .8rem; font: inherit }
.sides { display: grid; gap: 0 1.5rem; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)) }
.label { font-size: .8rem; font-weight: 600; letter-spacing: .03em; text-transform: uppercase; color: var(--soft) }
.label.tuned { color: var(--tuned) } svg { width: 100%; height: auto; display: block }
code { font-size: .9em; overflow-wrap: anywhere }
"""


def render(evaluation: dict[str, Any], curve: Sequence[dict[str, float]]) -> str:
    """The page for an evaluation (the content of evaluation.json) and its training's loss curve."""
    gate = evaluation["gate"]
    state = "passed" if gate["passed"] else "refused"
    headline = (
        "The gate passed: the tuned model may be registered" if gate["passed"] else "The gate refused the tuned model"
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Evaluation: {state}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<section class="verdict {state}">
<h1>{headline}</h1>
<ul>{"".join(f"<li>{escape(reason)}</li>" for reason in gate["reasons"])}</ul>
</section>
<h2>Held-out rows, base and tuned</h2>
{metrics_table(evaluation["metrics"])}
<h2>Before and after</h2>
<p class="soft">Greedy answers of at most {evaluation["parameters"]["max_new_tokens"]} tokens.</p>
{"".join(answer_card(answer) for answer in evaluation["answers"]) or "<p>No prompts were given.</p>"}
<h2>Training</h2>
{loss_curve(curve)}
{training_table(evaluation["training"])}
<h2>Ancestors</h2>
{rows_table([(key.replace("_", " "), evaluation[key]) for key in ("dataset_digest", "base_model_digest", "tuning_mode")])}
</main>
</body>
</html>
"""


def metrics_table(metrics: dict[str, Any]) -> str:
    rows = []
    for name, metric in metrics.items():
        low, high = metric["ci95"] or (None, None)
        rows.append(
            f"<tr><th scope='row'>{escape(name)} <span class='soft'>({escape(metric['unit'])}, {metric['direction']} is better)</span></th>"
            f"<td class='number'>{_number(metric['base'])}</td><td class='number'>{_number(metric['tuned'])}</td>"
            f"<td class='number'>{_number(metric['improvement'], sign=True)}</td>"
            f"<td class='number'>{_number(low, sign=True)} .. {_number(high, sign=True)}</td>"
            f"<td class='number'>{metric['n']}</td></tr>"
        )
    return (
        "<div class='scroll'><table><thead><tr><th scope='col'>metric</th><th scope='col' class='number'>base</th>"
        "<th scope='col' class='number'>tuned</th><th scope='col' class='number'>improvement</th>"
        "<th scope='col' class='number'>95 % interval</th><th scope='col' class='number'>rows</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def answer_card(answer: dict[str, Any]) -> str:
    sides = [("base", answer["base"]), ("tuned", answer["tuned"])]
    if answer["reference"] is not None:
        sides.append(("reference", answer["reference"]))
    return (
        "<article class='answer'><div class='label'>prompt</div>"
        f"<pre>{escape(answer['prompt'])}</pre><div class='sides'>"
        + "".join(
            f"<div><div class='label {label}'>{label}</div><pre>{escape(text) or '(empty)'}</pre></div>"
            for label, text in sides
        )
        + "</div></article>"
    )


def loss_curve(curve: Sequence[dict[str, float]], width: int = 800, height: int = 220) -> str:
    """The training loss over the optimizer steps, as an inline picture."""
    losses = [point["train_loss"] for point in curve]
    if len(losses) < 2:
        return ""
    low, high = min(losses), max(losses)
    left, top, right, bottom = 50, 12, width - 12, height - 30
    span = (high - low) or 1.0

    def point(index: int, loss: float) -> str:
        x = left + (right - left) * index / (len(losses) - 1)
        return f"{x:.1f},{bottom - (bottom - top) * (loss - low) / span:.1f}"

    line = " ".join(point(index, loss) for index, loss in enumerate(losses))
    text = "font-size='12' fill='var(--soft)'"
    return (
        f"<svg viewBox='0 0 {width} {height}' role='img' aria-label='Training loss from {losses[0]:.2f} to {losses[-1]:.2f} "
        f"nats per token in {len(losses)} steps'>"
        f"<path d='M{left} {top}V{bottom}H{right}' fill='none' stroke='var(--line)'/>"
        f"<polyline points='{line}' fill='none' stroke='var(--tuned)' stroke-width='2'/>"
        f"<text x='{left - 6}' y='{top + 8}' text-anchor='end' {text}>{high:.2f}</text>"
        f"<text x='{left - 6}' y='{bottom}' text-anchor='end' {text}>{low:.2f}</text>"
        f"<text x='{(left + right) / 2}' y='{height - 8}' text-anchor='middle' {text}>optimizer step 1 .. {len(losses)}: "
        f"training loss, nats per token</text></svg>"
    )


def training_table(training: dict[str, Any]) -> str:
    losses = training["validation_loss"]
    return rows_table(
        [
            ("validation loss", f"{_number(losses['before'])} -> {_number(losses['after'])} nats per token"),
            ("rows", f"{training['rows']:,}"),
            ("optimizer steps", f"{training['steps']:,}"),
            ("tokens", f"{training['tokens']:,} ({training['tokens_per_second']:,} a second)"),
        ]
    )


def rows_table(rows: Sequence[tuple[str, str]]) -> str:
    body = "".join(f"<tr><th scope='row'>{escape(k)}</th><td><code>{escape(v)}</code></td></tr>" for k, v in rows)
    return f"<div class='scroll'><table><tbody>{body}</tbody></table></div>"


def _number(value: float | None, sign: bool = False) -> str:
    return "not finite" if value is None else f"{value:{'+' if sign else ''}.3f}"
