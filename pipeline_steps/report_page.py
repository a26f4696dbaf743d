"""report.html: the verdict and why, in ten seconds; then the figures, answers and ancestors behind it.

One self-contained page: nothing in it comes from elsewhere, and what comes from data is always text.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline_steps import answers_section, charts, page_style
from pipeline_steps.answers_section import Scoring, Shared, kind_of
from pipeline_steps.charts import Curve
from pipeline_steps.contract import gate
from pipeline_steps.contract.evaluation import (
    MODELS,
    AnswerRow,
    Check,
    Evaluation,
    Improvement,
    Metric,
    Model,
    Point,
    Slice,
)
from pipeline_steps.contract.metrics import DEFINITIONS, LOSS, ROUGE_L
from pipeline_steps.page_style import NO_BREAK, Html, count, details, html, joined, table

HEADLINES = 4  # metrics that stand beside the verdict
REGRESSIONS = 5
SLICES_SHOWN = 20
FEW_ANSWERS = 10  # that can stand in the middle of the page; more of them come last

STYLE = """
.headlines { display: grid; gap: .6rem; grid-template-columns: repeat(auto-fit, minmax(min(13rem, 100%), 1fr));
  margin: .8rem 0; padding: 0; list-style: none }
.headlines li { background: var(--page); border-radius: .4rem; padding: .6rem .9rem }
.headlines .figure { font-size: 1.35rem; font-variant-numeric: tabular-nums; line-height: 1.3 }
.better { color: var(--good) } .worse { color: var(--bad) } .same, .neither { color: var(--soft) }
.contents { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: 1rem 0 0; padding: 0; list-style: none }
.reasons li { margin: .35rem 0 } .holds { white-space: nowrap; font-weight: 600 }
.intervals { list-style: none; margin: 0 0 .6rem; padding: 0 }
.intervals > li, .intervals-head { display: grid; gap: 0 1rem; align-items: center; border-bottom: 1px solid var(--line);
  grid-template-columns: minmax(9rem, 1fr) minmax(10rem, 2fr) minmax(16rem, 1.2fr); padding: .25rem 0 }
.intervals-head { font-size: .85rem; color: var(--soft) } .ends { display: flex; justify-content: space-between }
.intervals .told { font-variant-numeric: tabular-nums; font-size: .95rem }
@media (max-width: 48rem) { .intervals > li, .intervals-head { display: block }
  .intervals-head > :not(.ends) { display: none } }
"""


def render(evaluation: Evaluation, answers: Sequence[AnswerRow]) -> str:
    """The page for an evaluation and its answered rows or prompts."""
    passed = evaluation.gate.passed
    scoring = scoring_of(answers)
    side_by_side = Section("answers", "Answers side by side", all_answers(evaluation, answers, scoring))
    few = len(answers) <= FEW_ANSWERS
    sections = [
        Section("checks", "The gate's checks", checks(evaluation)),
        Section("metrics", "Metrics, with 95 % intervals", metrics(evaluation)),
        *([side_by_side] if few else []),
        Section("regressions", "Worst regressions", regressions(answers, scoring)),
        Section("slices", f"By {evaluation.slice_column}", slices(evaluation)),
        Section("training", "Training", training(evaluation)),
        Section("ancestors", "Ancestors", ancestors(evaluation)),
        *([] if few else [side_by_side]),
    ]
    shown = [section for section in sections if section.body]
    body = joined([verdict(evaluation), contents(shown), *map(_section, shown)])
    return page_style.page(
        f"Evaluation: {'passed' if passed else 'refused'}",
        body,
        style=charts.STYLE + answers_section.STYLE + STYLE,
        script=answers_section.SCRIPT,
    )


@dataclass(frozen=True)
class Section:
    """A part of the page; one without a body is left out."""

    name: str
    title: str
    body: Html


def _section(section: Section) -> Html:
    return Html(f"<section id='{section.name}'>\n<h2>{html(section.title)}</h2>\n{section.body}\n</section>\n")


def contents(sections: Sequence[Section]) -> Html:
    links = joined(Html(f"<li><a href='#{one.name}'>{html(one.title)}</a></li>") for one in sections)
    return Html(f"<nav aria-label='Contents'><ul class='contents'>{links}</ul></nav>\n")


# ---------------------------------------------------------------- the verdict


def verdict(evaluation: Evaluation) -> Html:
    """The status, one sentence, and why: the reasons of a refusal come before the figures, those of a pass after them."""
    decided = evaluation.gate
    failed = [check for check in decided.checks if not check.passed and not check.skipped]
    if decided.passed:
        headline = "The gate passed: the tuned model may be registered"
    elif failed:
        applied = sum(not check.skipped for check in decided.checks)
        headline = f"The gate refused the tuned model: {len(failed)} of {count(applied, 'check')} failed"
    else:
        headline = "The gate refused the tuned model"
    reasons = Html(
        f"<ul class='reasons'>{joined(Html(f'<li>{html(_readable(one))}</li>') for one in decided.reasons)}</ul>\n"
    )
    compared = Html(f"<p class='soft'>{html(_what_was_compared(evaluation))}</p>\n")
    figures = headlines(evaluation)
    told = [compared, figures, reasons] if decided.passed else [reasons, compared, figures]
    return Html(
        f"<section class='verdict {'passed' if decided.passed else 'refused'}'>\n"
        f"<p class='status'>{'Passed' if decided.passed else 'Refused'}</p>\n<h1>{headline}</h1>\n{joined(told)}</section>\n"
    )


def _readable(reason: str) -> str:
    """A reason is written for logs and metadata, in plain signs."""
    return reason.replace(" -> ", " \N{RIGHTWARDS ARROW} ").replace(" .. ", " to ")


def _what_was_compared(evaluation: Evaluation) -> str:
    base, champion = evaluation.models["base"], evaluation.models.get("champion")
    others = "its base" + (
        f" and with the champion, {_package(champion)}" if champion else "; there is no champion yet"
    )
    mode = {"domain": "domain adaptation", "instruction": "instruction tuning"}.get(
        evaluation.tuning_mode, evaluation.tuning_mode
    )
    return f"{base.name}, {mode}, compared on {count(evaluation.rows, 'held-out row')} with {others}."


def _package(model: Model) -> str:
    """demo/3 of arn:aws:sagemaker:...:model-package/demo/3."""
    return (model.package or "").partition("model-package/")[2] or model.package or "a registered model"


def headlines(evaluation: Evaluation) -> Html:
    """The metrics that the gate looks at, from the base to the tuned model: what changed, at a glance."""
    checked = dict.fromkeys(check.metric for check in evaluation.gate.checks if not check.skipped)
    names = [name for name in (*checked, LOSS, ROUGE_L) if name in evaluation.metrics]
    items = []
    for metric in (evaluation.metrics[name] for name in list(dict.fromkeys(names))[:HEADLINES]):
        base, tuned = (_value(metric, model) for model in ("base", "tuned"))
        told = joined(_told_change(metric, other) for other in metric.improvements)
        items.append(
            Html(
                f"<li><div class='label'>{html(metric.label)}</div><div class='figure'>{base} to {tuned}</div>{told}</li>"
            )
        )
    return Html(f"<ul class='headlines' aria-label='Metrics of the gate, base to tuned'>{joined(items)}</ul>\n")


def _told_change(metric: Metric, other: str) -> Html:
    improvement = metric.improvements[other]
    state, word = _state(metric, improvement)
    if improvement.value is None:
        return Html(f"<div class='{state}'>not a number against the {html(other)}</div>")
    if state == "same":
        return Html(f"<div class='{state}'>not clearly different from the {html(other)}</div>")
    amount = _number(abs(improvement.value), metric.name)
    return Html(f"<div class='{state}'>{amount} {word} than the {html(other)}</div>")


def checks(evaluation: Evaluation) -> Html:
    """What the gate asked for and what was measured."""
    if not evaluation.gate.checks:
        return Html("<p>No check applies to this tuning mode: the gate stays closed.</p>")
    rows = [
        (
            Html(f"{html(_label(check.metric))}<span class='soft note'>{html(_compared(check))}</span>"),
            _outcome(check),
            _asked(check),
            _measured(check),
            "-" if check.n is None else count(check.n),
        )
        for check in evaluation.gate.checks
    ]
    return table(("check", "outcome", "asked for", "measured, 95 % interval", "rows"), rows, numbers={4})


def _outcome(check: Check) -> Html:
    state, words = (
        ("soft", "does not apply")
        if check.skipped
        else (("better", "✓ holds") if check.passed else ("worse", "✗ fails"))
    )
    return Html(f"<span class='holds {state}'>{words}</span>")


def _compared(check: Check) -> str:
    if check.compared_with == "number":
        return "by the tuned model" if check.metric == gate.OVERLAP else "the tuned model's own value"
    return f"improvement over the {check.compared_with}"


def _asked(check: Check) -> str:
    if check.metric == gate.OVERLAP:
        return "none"
    below = check.compared_with == "number" and check.direction == "lower"
    end = "high end below" if below else "low end above"
    return f"{end} {_signs(f'{check.margin:g}')}, on {count(check.minimum_n)} rows"


def _measured(check: Check) -> str:
    sign = check.compared_with != "number"
    if check.skipped:
        return "-"
    if check.metric == gate.OVERLAP:
        return "not known" if check.value is None else count(round(check.value), "row")
    return f"{_number(check.value, check.metric, sign)} ({_range(check.interval, check.metric, sign)})"


# ---------------------------------------------------------------- metrics


def metrics(evaluation: Evaluation) -> Html:
    """Every improvement with its interval as a picture, then all values as a table."""
    models = [model for model in MODELS if model in evaluation.models]
    values = [
        (
            page_style.noted(metric.label, _unit(metric)),
            *(_value_with_interval(metric, model) for model in models),
            count(metric.n),
        )
        for metric in evaluation.metrics.values()
    ]
    formulas = [(metric.label, metric.formula) for metric in evaluation.metrics.values()]
    return joined(
        [
            Html(
                "<p class='soft'>How much better the tuned model is on the same rows: the dot is what was measured, the bar "
                f"its 95 % interval ({count(evaluation.resamples)} paired bootstrap resamples), the dashed line what the gate "
                "asks for. Each line has its own scale, with no change in the middle.</p>"
            ),
            *(intervals(evaluation, model) for model in models if model != "tuned"),
            Html("<h3>Values</h3>"),
            table(("metric", *models, "rows"), values, range(1, len(models) + 2)),
            details("How each metric is computed", table(("metric", "formula"), formulas)),
        ]
    )


def intervals(evaluation: Evaluation, other: str) -> Html:
    """The improvement over one other model, a line for each metric."""
    margins = {check.metric: check.margin for check in evaluation.gate.checks if check.compared_with == other}
    rows = joined(
        _interval_row(metric, other, margins.get(metric.name))
        for metric in evaluation.metrics.values()
        if other in metric.improvements
    )
    return Html(
        f"<h3>Against the {html(other)}</h3><div class='intervals-head' aria-hidden='true'><span>metric</span>"
        "<span class='ends'><span>worse</span><span>better</span></span><span>improvement</span></div>"
        f"<ul class='intervals'>{rows}</ul>"
    )


def _interval_row(metric: Metric, other: str, margin: float | None) -> Html:
    improvement = metric.improvements[other]
    state, words = _state(metric, improvement)
    told = f"{_number(improvement.value, metric.name, True)} ({_range(improvement.interval, metric.name, True)})"
    picture = Html("<span></span>")
    if improvement.value is not None and improvement.interval is not None:
        low, high = improvement.interval
        reach = max(abs(low), abs(high), abs(margin or 0.0))
        colour = {"better": "var(--good)", "worse": "var(--bad)"}.get(state, "var(--soft)")
        label = f"{metric.label}: {told}, {words}, against the {other}"
        picture = charts.interval(low, high, improvement.value, reach, colour, margin, label)
    return Html(
        f"<li><span>{html(metric.label)}</span>{picture}"
        f"<span class='told'>{html(told)} <span class='{state}'>{html(words)}</span></span></li>"
    )


def _state(metric: Metric, improvement: Improvement) -> tuple[str, str]:
    """better, worse, same or neither, and the word for it: only an interval beside zero counts as a difference."""
    if improvement.value is None or improvement.interval is None:
        return "worse", "not a number"
    low, high = improvement.interval
    if metric.direction == "neither":
        return "neither", "more" if improvement.value > 0 else "less"
    if low > 0:
        return "better", "better"
    if high < 0:
        return "worse", "worse"
    return "same", "unclear"


def _unit(metric: Metric) -> str:
    direction = "neither is better" if metric.direction == "neither" else f"{metric.direction} is better"
    return direction if metric.unit == "1" else f"{metric.unit}; {direction}"


def _value(metric: Metric, model: str) -> Html:
    value = metric.values.get(model)
    return html(_number(value.value if value else None, metric.name))


def _value_with_interval(metric: Metric, model: str) -> Html:
    value = metric.values.get(model)
    if value is None:
        return Html("<span class='soft'>-</span>")
    shown = _number(value.value, metric.name)
    return page_style.noted(shown, _range(value.interval, metric.name)) if value.interval else html(shown)


def _label(name: str) -> str:
    if name == gate.OVERLAP:
        return "test rows seen in training"
    return DEFINITIONS[name].label if name in DEFINITIONS else name


def _number(value: float | None, name: str, sign: bool = False) -> str:
    """A figure with the decimals of its metric."""
    if value is None:
        return "not finite"
    decimals = DEFINITIONS[name].decimals if name in DEFINITIONS else 3
    value = round(value, decimals) + 0.0  # no minus before a zero
    text = f"{value:{'+' if sign else ''},.{decimals}f}" if abs(value) < 1e6 else f"{value:{'+' if sign else ''}.3g}"
    return _signs(text)


def _signs(number: str) -> str:
    """A minus sign that is one, not a hyphen."""
    return number.replace("-", "\N{MINUS SIGN}")


def _range(interval: tuple[float, float] | None, name: str, sign: bool = False) -> str:
    if interval is None:
        return "no interval"
    low, high = (_number(end, name, sign).replace(" ", NO_BREAK) for end in interval)
    return f"{low} to {high}"


# ---------------------------------------------------------------- rows: regressions, slices, all answers


def scoring_of(answers: Sequence[AnswerRow]) -> Scoring:
    """By what answers are compared: ROUGE-L where they have a reference, else nothing."""
    scored = any(ROUGE_L in answer.scores for row in answers for answer in row.answers.values())
    return Scoring(ROUGE_L, _label(ROUGE_L)) if scored else Scoring(None, "")


def regressions(answers: Sequence[AnswerRow], scoring: Scoring) -> Html:
    """The rows whose answer lost most against the base or, if there is one, against the champion."""
    if scoring.metric is None:
        return Html("")
    numbered = list(enumerate(answers, start=1))
    parts = []
    for other in ("base", "champion"):
        if not any(other in row.answers for row in answers):
            continue
        changes = [(scoring.change(row, other) or 0.0, number, row) for number, row in numbered]
        worse = sorted((one for one in changes if kind_of(one[0]) == "worse"), key=lambda one: one[:2])
        parts.append(_worst(worse, len(answers), other, scoring))
    return joined(parts)


def _worst(worse: Sequence[tuple[float, int, AnswerRow]], rows: int, other: str, scoring: Scoring) -> Html:
    if not worse:
        return Html(f"<p>No answer is worse than the {other}'s by {html(scoring.label)}.</p>")
    shared = Shared.of([row for _, _, row in worse])
    cards = joined(answers_section.card(row, number, scoring, shared) for _, number, row in worse[:REGRESSIONS])
    share = page_style.percent(len(worse) / rows)
    sentence = (
        f"{count(len(worse))} of {count(rows, 'answer')} ({share}) {'is' if len(worse) == 1 else 'are'} worse than the "
        f"{other}'s by {scoring.label}"
    )
    which = "." if len(worse) == 1 else f"; the worst {min(len(worse), REGRESSIONS)}:"
    opening = Html(f"<p>{html(sentence + which)}</p>")
    return joined([opening, cards]) if other == "base" else joined([opening, details("Show them", cards)])


def slices(evaluation: Evaluation) -> Html:
    """Each slice's figures, the least improved first."""
    if not evaluation.slices:
        return Html("")
    names = list(dict.fromkeys(name for one in evaluation.slices for name in one.metrics))[:3]

    def gain(one: Slice) -> float:
        improvement = one.metrics[names[0]].improvements.get("base") if names and names[0] in one.metrics else None
        return improvement.value if improvement and improvement.value is not None else float("-inf")

    rows = [
        (one.value, count(one.rows), *(_slice_cell(one, name) for name in names))
        for one in sorted(evaluation.slices, key=gain)
    ]
    head = (str(evaluation.slice_column), "rows", *map(_label, names))
    shown = table(head, rows[:SLICES_SHOWN], range(1, len(head)))
    more = rows[SLICES_SHOWN:]
    return joined(
        [
            Html("<p class='soft'>Base to tuned in each slice of the test set, the least improved first.</p>"),
            shown,
            details(f"{count(len(more), 'more slice')}", table(head, more, range(1, len(head)))) if more else "",
        ]
    )


def _slice_cell(one: Slice, name: str) -> Html:
    metric = one.metrics.get(name)
    if metric is None:
        return Html("-")
    improvement = metric.improvements.get("base")
    values = f"{_value(metric, 'base')} to {_value(metric, 'tuned')}"
    if improvement is None:
        return Html(values)
    state, _ = _state(metric, improvement)
    told = f"{_number(improvement.value, name, True)} ({_range(improvement.interval, name, True)})"
    return Html(f"{values}<span class='note {state}'>{html(told)}</span>")


def all_answers(evaluation: Evaluation, answers: Sequence[AnswerRow], scoring: Scoring) -> Html:
    if not answers:
        return Html("<p>No prompts were given, so no answers were generated.</p>")
    decoding = evaluation.decoding
    sampled = f"sampled at temperature {decoding.temperature:g}, seed {decoding.seed}"
    how = (
        f"{'greedy' if not decoding.temperature else sampled}, at most {count(decoding.max_new_tokens, 'new token')}, "
    )
    order = f"Those that changed most in {scoring.label} come first. " if scoring.metric else ""
    return joined(
        [
            Html(
                f"<p class='soft'>{html(order)}Parameters of every answer: {html(how)}stop at {html(decoding.stop)}.</p>"
            ),
            answers_section.answers(answers, scoring),
        ]
    )


# ---------------------------------------------------------------- training and ancestors


def training(evaluation: Evaluation) -> Html:
    """The loss curves, and what the training took."""
    told = evaluation.training
    learned, validated = _points(told.learned), _points(told.validation)
    lines = [
        Curve("training loss", learned, "var(--train)"),
        Curve("validation loss", validated, "var(--validation)", dots=True),
    ]
    picture: str = Html("<p>No losses were recorded.</p>")
    if learned or validated:
        label = "; ".join(
            f"{line.name} from {line.points[0][1]:.3f} to {line.points[-1][1]:.3f}" for line in lines if line.points
        )
        mark = (float(told.best_step), f"best: step {count(told.best_step)}") if validated else None
        picture = charts.curves(lines, "nats per learned token, by optimizer step", f"Loss curves: {label}", mark)
    rows = [
        ("method", told.method),
        ("rows", count(told.rows)),
        ("optimizer steps", f"{count(told.steps)}, ended by: {told.ended_by}"),
        ("the model is of step", count(told.best_step)),
        ("tokens", f"{count(told.tokens)}, {told.tokens_per_second:,.0f} a second on {count(told.devices, 'device')}"),
        ("time", page_style.duration(told.seconds / 3600)),
    ]
    return joined([picture, page_style.rows_table(rows)])


def _points(points: Sequence[Point]) -> list[tuple[float, float]]:
    return [(float(point.step), point.loss) for point in points if point.loss is not None]


def ancestors(evaluation: Evaluation) -> Html:
    """What the model and these figures come from, so that both can be made again."""
    told = evaluation.ancestors
    link = Html("<p>The rows behind this model: <a href='data_card.html'>data card</a></p>")
    rows = [
        ("dataset", told.dataset_digest),
        ("test set", told.test_digest),
        ("base model", f"{told.base_model}, {told.base_model_digest}"),
        ("champion", told.champion_package or "none"),
        ("step code", told.step_code or "not known"),
        ("pipeline execution", told.execution or "none: it ran outside of a pipeline"),
        ("training job", told.training_job or "none"),
        ("evaluation job", told.evaluation_job or "none"),
        ("test rows seen in training", "; ".join(_overlaps(evaluation)) or "not known"),
        ("models loaded as", "; ".join(f"{name}: {model.how}" for name, model in evaluation.models.items())),
        ("evaluated in", ", ".join(f"{name} {seconds:,.1f} s" for name, seconds in evaluation.seconds.items())),
    ]
    parameters = page_style.rows_table([(name, _text(value)) for name, value in told.hyperparameters.items()])
    return joined(
        [
            link if evaluation.data_card else "",
            page_style.rows_table(rows),
            details(f"Hyperparameters ({len(told.hyperparameters)})", parameters) if told.hyperparameters else "",
        ]
    )


def _overlaps(evaluation: Evaluation) -> Iterator[str]:
    for overlap in evaluation.overlaps:
        found = "not known" if overlap.rows is None else count(overlap.rows)
        examples = f" (rows {', '.join(overlap.examples)})" if overlap.examples else ""
        yield f"{overlap.model}: {found}{examples}"


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
