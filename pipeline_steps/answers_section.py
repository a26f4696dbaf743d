"""Answers side by side: what changed most first, with a search that works by keyboard. Without its script, all are shown."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline_steps.contract.evaluation import Answer, AnswerRow
from pipeline_steps.page_style import Html, block, count, details, html, joined

SHOWN_AT_ONCE = 20
FEW = 5  # rows that need no tools to find one's way
ROWS_ON_PAGE = 1000  # those that changed most; answers.jsonl has all of them
SHARED_CHARACTERS = 60  # a beginning or an end of this length that all prompts share is shown once
LONG_CHARACTERS = 1200  # of a text that gets a box with a scroll bar
TIE = 0.005  # a score that differs by less is the same

STYLE = """
.tools { display: flex; flex-wrap: wrap; gap: .6rem 1rem; align-items: end; margin: .8rem 0 }
.tools[hidden] { display: none }
.tools label { display: grid; gap: .15rem; font-size: .85rem; color: var(--soft) } .tools .search { flex: 1 1 14rem }
input, select, button { font: inherit; color: var(--text); background: var(--page); border: 1px solid var(--soft);
  border-radius: .3rem; padding: .4rem .6rem; min-width: 0 } button { cursor: pointer }
:focus-visible { outline: .18rem solid var(--tuned); outline-offset: .1rem }
.answers { list-style: none; margin: 0; padding: 0 } .answers > li { content-visibility: auto; contain-intrinsic-size: auto 22rem }
.answers > li[hidden] { display: none }
.answer > h3 { display: flex; flex-wrap: wrap; gap: .1rem .8rem; margin: 0 0 .5rem; font-size: .95rem; font-weight: 400 }
.answer > h3 a { font-weight: 700 } .change { font-weight: 700 } .change.better { color: var(--good) }
.change.worse { color: var(--bad) } .change.same { color: var(--soft) }
.answer pre.long { max-height: 24rem; overflow: auto; border: 1px solid var(--line); border-radius: .3rem; padding: .4rem .6rem }
.answer .sides { gap: .4rem 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(13.5rem, 100%), 1fr)) }
.label .how { font-weight: 400; letter-spacing: 0; text-transform: none } .label.champion { color: var(--champion) }
.sides .label { margin-top: .1rem }
.more { margin: .2rem 0 1rem }
@media print { .tools, .more { display: none } .answers > li[hidden] { display: list-item }
  .answer pre.long { max-height: none } .answers > li { content-visibility: visible } }
"""

SCRIPT = """
"use strict";
(() => {
  const tools = document.getElementById("answer-tools"), list = document.getElementById("answer-list");
  if (!tools || !list) return;
  const [search, show, order] = ["answer-search", "answer-show", "answer-order"].map((id) => document.getElementById(id));
  const found = document.getElementById("answer-count"), more = document.getElementById("answer-more");
  const step = Number(list.dataset.step);
  const rows = [...list.children].map((element, place) => ({
    element, place, kind: element.dataset.kind, change: Number(element.dataset.change),
    row: Number(element.dataset.row), text: "" }));
  let limit = step, chosen = rows;
  const text = (row) => row.text ||= row.element.textContent.toLowerCase();
  const orders = { most: (a, b) => a.place - b.place, worst: (a, b) => a.change - b.change,
    best: (a, b) => b.change - a.change, row: (a, b) => a.row - b.row };
  const draw = () => {
    const shown = new Set(chosen.slice(0, limit));
    for (const row of rows) row.element.hidden = !shown.has(row);
    const left = chosen.length - shown.size;
    more.hidden = !left;
    more.textContent = `Show ${Math.min(step, left)} more`;
    found.textContent = chosen.length === rows.length
      ? `${rows.length.toLocaleString("en")} rows, ${shown.size.toLocaleString("en")} shown`
      : `${chosen.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rows fit`;
  };
  const choose = () => {
    const words = search.value.toLowerCase().split(/\\s+/).filter(Boolean);
    chosen = rows.filter((row) => (!show || !show.value || row.kind === show.value)
      && words.every((word) => text(row).includes(word)));
    limit = step;
    draw();
  };
  const sort = () => {
    rows.sort(orders[order.value]);
    list.append(...rows.map((row) => row.element));
    choose();
  };
  const reveal = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const row = target && rows.find((one) => one.element === target);
    if (!row || !row.element.hidden) return;
    search.value = "";
    if (show) show.value = "";
    choose();
    limit = Math.ceil((chosen.indexOf(row) + 1) / step) * step;
    draw();
    target.scrollIntoView();
  };
  search.addEventListener("input", choose);
  show?.addEventListener("change", choose);
  order?.addEventListener("change", sort);
  more.addEventListener("click", () => {
    const next = chosen[limit];
    limit += step;
    draw();
    next.element.querySelector("a").focus();
  });
  addEventListener("hashchange", reveal);
  tools.hidden = false;
  choose();
  reveal();
})();
"""


@dataclass(frozen=True)
class Scoring:
    """How rows are compared: `metric` is a key of Answer.scores, or None where there is nothing to compare with."""

    metric: str | None
    label: str

    def change(self, row: AnswerRow, other: str = "base") -> float | None:
        """How much better the tuned model's answer is than the other's; None where it was not scored."""
        if self.metric is None or other not in row.answers:
            return None
        scores = [row.answers[model].scores.get(self.metric) for model in ("tuned", other)]
        return None if scores[0] is None or scores[1] is None else scores[0] - scores[1]


def kind_of(change: float | None) -> str:
    """better, worse or same."""
    if change is None or abs(change) < TIE:
        return "same"
    return "better" if change > 0 else "worse"


def by_change(rows: Sequence[AnswerRow], scoring: Scoring) -> list[AnswerRow]:
    """The rows, those whose answer changed most first: by score, else by whether the texts differ."""
    return sorted(rows, key=lambda row: -(abs(scoring.change(row) or 0.0)))


def answers(rows: Sequence[AnswerRow], scoring: Scoring) -> Html:
    """All rows as cards, with the tools to search, filter and order them."""
    shared = Shared.of(rows)
    numbers = {id(row): number for number, row in enumerate(rows, start=1)}
    shown = by_change(rows, scoring)[:ROWS_ON_PAGE]
    items = []
    for row in shown:
        change = scoring.change(row)
        number = numbers[id(row)]
        items.append(
            f"<li id='row-{number}' data-row='{number}' data-kind='{kind_of(change)}' data-change='{change or 0:.4f}'>"
            f"{card(row, number, scoring, shared)}</li>"
        )
    left_out = len(rows) - len(shown)
    note = f"The {count(len(shown))} rows that changed most; answers.jsonl has all {count(len(rows))}."
    return joined(
        [
            Html(f"<p class='soft'>{note}</p>") if left_out else "",
            shared.shown(),
            _tools(shown, scoring) if len(shown) > FEW else "",
            Html(f"<ol class='answers' id='answer-list' data-step='{SHOWN_AT_ONCE}'>{''.join(items)}</ol>"),
            Html("<button type='button' class='more' id='answer-more' hidden>Show more</button>"),
        ]
    )


def _tools(rows: Sequence[AnswerRow], scoring: Scoring) -> Html:
    """Hidden until the script runs: without it they would do nothing."""
    kinds = [kind_of(scoring.change(row)) for row in rows]
    selects = ""
    if scoring.metric is not None:
        options = "".join(
            f"<option value='{kind}'>{text} ({count(kinds.count(kind))})</option>"
            for kind, text in (("better", "better than base"), ("worse", "worse than base"), ("same", "the same"))
        )
        selects = (
            f"<label>Show<select id='answer-show'><option value=''>all ({count(len(kinds))})</option>{options}</select>"
            "</label><label>Order<select id='answer-order'><option value='most'>changed most</option>"
            "<option value='worst'>worst first</option><option value='best'>best first</option>"
            "<option value='row'>as in the test set</option></select></label>"
        )
    return Html(
        "<div class='tools' id='answer-tools' role='search' aria-label='Answers' hidden><label class='search'>"
        f"Search prompts and answers<input type='search' id='answer-search' autocomplete='off'></label>{selects}"
        "<output id='answer-count' class='soft'></output></div>"
    )


@dataclass(frozen=True)
class Shared:
    """What all prompts begin and end with: a template's words, which would hide what tells the prompts apart."""

    beginning: str
    end: str

    @classmethod
    def of(cls, rows: Sequence[AnswerRow]) -> "Shared":
        prompts = [row.prompt for row in rows]
        if len(set(prompts)) < 2:
            return cls("", "")
        beginning = _common(prompts)
        beginning = beginning[: max(beginning.rfind(sign) for sign in " \n") + 1]
        end = _common([prompt[len(beginning) :][::-1] for prompt in prompts])[::-1]
        end = end[end.find("\n") :] if "\n" in end else ""
        return cls(
            beginning if len(beginning) >= SHARED_CHARACTERS else "",
            end if len(end.strip()) >= 8 else "",
        )

    def without(self, prompt: str) -> str:
        rest = prompt[len(self.beginning) : len(prompt) - len(self.end)]
        return f"{'… ' if self.beginning else ''}{rest.strip() if self.beginning or self.end else rest}{' …' if self.end else ''}"

    def shown(self) -> Html:
        parts = [block("beginning", self.beginning)] if self.beginning else []
        parts += [block("end", self.end)] if self.end else []
        if not parts:
            return Html("")
        where = " and ".join(name for name, text in (("begins", self.beginning), ("ends", self.end)) if text)
        return details(f"Every prompt {where} with the same words, shown as … below", joined(parts))


def _common(texts: Sequence[str]) -> str:
    """The characters that all texts begin with."""
    first, last = min(texts), max(texts)
    return first[: next((place for place, sign in enumerate(first) if last[place : place + 1] != sign), len(first))]


def card(row: AnswerRow, number: int, scoring: Scoring, shared: Shared) -> Html:
    """A prompt with every model's answer and the reference beside each other."""
    sides = [_side(name, answer) for name, answer in row.answers.items()]
    if row.reference is not None:
        sides.append(Html(f"<div>{text_block('reference', row.reference)}</div>"))
    return Html(
        f"<article class='answer'><h3>{joined(_facts(row, number, scoring))}</h3>"
        f"{text_block('prompt', shared.without(row.prompt))}<div class='sides'>{joined(sides)}</div></article>"
    )


def _facts(row: AnswerRow, number: int, scoring: Scoring) -> list[str]:
    facts: list[str] = [
        Html(f"<a href='#row-{number}'>{'prompt' if row.reference is None else 'row'} {count(number)}</a>")
    ]
    if row.slice is not None:
        facts.append(Html(f"<span>{html(row.slice)}</span>"))
    change, kind = scoring.change(row), kind_of(scoring.change(row))
    if change is not None:
        of_tuned = row.answers["tuned"].scores[str(scoring.metric)]
        words = {"better": "better", "worse": "worse", "same": "the same"}[kind]
        facts.append(
            Html(
                f"<span><span class='change {kind}'>{words}</span>: {html(scoring.label)} {of_tuned - change:.2f} to "
                f"{of_tuned:.2f}</span>"
            )
        )
    losses = {name: answer.loss for name, answer in row.answers.items()}
    if losses.get("base") is not None and losses.get("tuned") is not None:
        facts.append(Html(f"<span class='soft'>loss {losses['base']:.2f} to {losses['tuned']:.2f}</span>"))
    return facts


def _side(name: str, answer: Answer) -> Html:
    how = f"{count(answer.tokens, 'token')}, {'ended by itself' if answer.ended else 'cut off'}"
    return Html(f"<div>{text_block(name, answer.text, how)}</div>")


def text_block(label: str, text: str, how: str = "") -> Html:
    """A labelled text with its line breaks, in its own direction; a long one in a box that scrolls, also by keyboard."""
    shown = html(text) if text.strip() else "<span class='soft'>(empty)</span>"
    note = f" <span class='how'>{html(how)}</span>" if how else ""
    is_long = len(text) > LONG_CHARACTERS or text.count("\n") > LONG_CHARACTERS / 60
    box = f" class='long' tabindex='0' role='group' aria-label='{html(label)}, whole text'" if is_long else ""
    return Html(f"<div class='label {html(label)}'>{html(label)}{note}</div><pre dir='auto'{box}>\n{shown}</pre>")
