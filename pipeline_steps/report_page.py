"""report.html: one self-contained page, the verdict first. Nothing in it comes from elsewhere, and data is always text."""

from collections.abc import Sequence
from html import escape
from typing import Any

from pipeline_steps.page_style import Html, page, rows_table, table

DATA_CARD_LINK = '<p>The rows behind this model: <a href="data_card.html">data card</a></p>'


def render(evaluation: dict[str, Any], curve: Sequence[dict[str, float]]) -> str:
    """The page for an evaluation (the content of evaluation.json) and its training's loss curve."""
    gate = evaluation["gate"]
    state = "passed" if gate["passed"] else "refused"
    headline = (
        "The gate passed: the tuned model may be registered" if gate["passed"] else "The gate refused the tuned model"
    )
    body = f"""<section class="verdict {state}">
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
{DATA_CARD_LINK if evaluation["data_card"] else ""}"""
    return page(f"Evaluation: {state}", body)


def metrics_table(metrics: dict[str, Any]) -> str:
    rows = []
    for name, metric in metrics.items():
        low, high = metric["ci95"] or (None, None)
        unit = f"({escape(metric['unit'])}, {metric['direction']} is better)"
        rows.append(
            [
                Html(f"{escape(name)} <span class='soft'>{unit}</span>"),
                _number(metric["base"]),
                _number(metric["tuned"]),
                _number(metric["improvement"], sign=True),
                f"{_number(low, sign=True)} .. {_number(high, sign=True)}",
                str(metric["n"]),
            ]
        )
    head = ["metric", "base", "tuned", "improvement", "95 % interval", "rows"]
    return table(head, rows, numbers=range(1, len(head)))


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


def _number(value: float | None, sign: bool = False) -> str:
    return "not finite" if value is None else f"{value:{'+' if sign else ''}.3f}"
