"""The pages show data as text, need nothing from elsewhere, and are well-formed whatever part is missing.

tests/browser looks at the report in a real browser.
"""

import copy
import math
import re
from dataclasses import fields, is_dataclass, replace
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_steps import answers_section, charts, data_card_page, page_style, report_page
from pipeline_steps.contract.evaluation import (
    Answer,
    AnswerRow,
    Check,
    Evaluation,
    Improvement,
    Metric,
    Point,
    Value,
    Verdict,
)
from pipeline_steps.contract.gate import OVERLAP
from tests import evaluations
from tests.pages import DATA_CARDS, data_card

SAMPLES = {path.stem: data_card(path.stem) for path in DATA_CARDS}
ATTACK = "<script>alert(1)</script><img src=x onerror='alert(2)'>\"' onload=alert(3) --></pre></style>&amp;{0}"
TAGS = frozenset(
    """
    html head meta title style body main section h1 h2 h3 p a ul li span div table thead tbody tr th td code pre
    details summary article mark figure figcaption svg g path rect text
    nav ol label input select option output button script
    """.split()  # noqa: SIM905
)
ATTRIBUTES = frozenset(
    """
    lang charset name content http-equiv id class href scope dir open style role aria-label viewbox
    preserveaspectratio d x y width height fill stroke stroke-width stroke-dasharray opacity points font-size
    text-anchor stroke-linecap stroke-linejoin stroke-opacity
    tabindex hidden type value autocomplete aria-hidden data-row data-kind data-change data-step data-column
    """.split()  # noqa: SIM905
)
OPEN_ENDED = {"meta", "input"}
STYLES = r"background:var\(--[a-z]+\)|height:\.7rem|(top|left):[\d.]+%|border-color:var\(--[a-z]+\)"


class Page(HTMLParser):
    """Reads a page as a browser would, and refuses whatever a page of ours has no business to hold."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.scripts: list[str] = []
        self.shown: list[str] = []
        self.feed(text)
        self.close()
        assert not self.opened
        assert len(set(self.ids)) == len(self.ids)
        assert {link[1:] for link in self.links if link.startswith("#")} <= set(self.ids)
        assert all(link.startswith("#") or link in ("data_card.html",) for link in self.links)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, tag
        for name, value in attrs:
            assert name in ATTRIBUTES, name
            if name == "style":
                assert re.fullmatch(STYLES, value or "")
            self.ids += [value or ""] if name == "id" else []
            self.links += [value or ""] if name == "href" else []
        if tag not in OPEN_ENDED:
            self.opened.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.opened.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.scripts if self.opened and self.opened[-1] == "script" else self.shown).append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.shown).replace(page_style.NO_BREAK, " ").split())


def card(name: str = "large_domain", **changes: Any) -> dict[str, Any]:
    return copy.deepcopy(SAMPLES[name]) | changes


def with_texts(value: Any, text: str) -> Any:
    """The same card with every text that comes from outside replaced; names of splits and keys are the program's own."""
    if isinstance(value, dict):
        own = ("tuning_mode",)
        return {
            key: one
            if key in own or (key in ("held_out", "seen_in") and one in data_card_page.SPLITS)
            else with_texts(one, text)
            for key, one in value.items()
        }
    if isinstance(value, list):
        return [with_texts(one, text) for one in value]
    return text if isinstance(value, str) else value


# ---------------------------------------------------------------- hostile text


@pytest.mark.parametrize("name", SAMPLES)
def test_texts_of_a_card_are_never_markup(name: str) -> None:
    hostile = with_texts(card(name, message=ATTACK, already_trained=True), ATTACK)
    hostile["personal_data"]["kinds"] = {ATTACK: {"findings": 1, "rows": 1}}
    text = data_card_page.render(hostile)
    assert "<script" not in text and "<img" not in text and "<!--" not in text
    assert "default-src 'none'" in text
    assert " ".join(ATTACK.split()) in Page(text).text


@given(st.sampled_from(sorted(SAMPLES)), st.text())
def test_any_text_leaves_the_page_well_formed(name: str, text: str) -> None:
    rendered = data_card_page.render(with_texts(card(name), text))
    rendered.encode("utf-8")
    Page(rendered)


@given(st.text(st.sampled_from("<>&\"'/ab \n"), max_size=60), st.text(st.sampled_from("<>&\"'/ab \n"), max_size=60))
def test_marking_differences_changes_no_text(one: str, other: str) -> None:
    for marked, plain in zip(data_card_page._marked(one, other), (one, other), strict=True):
        assert re.sub("</?mark>", "", marked) == page_style.html(plain)


def test_of_near_duplicates_the_words_are_marked_that_differ_and_no_front_that_was_cut() -> None:
    marked = data_card_page._marked("… the rest.\n\nA ferry is late.", "… rest.\n\nA ferry is very late today.")
    assert marked == (
        "… the rest.\n\nA ferry is <mark>late.</mark>",
        "… rest.\n\nA ferry is <mark>very late today.</mark>",
    )


def test_what_cannot_be_written_as_utf8_is_replaced() -> None:
    assert "\ud800" not in data_card_page.render(with_texts(card(), "half a pair: \ud800"))


def test_every_answer_of_a_dialog_is_shown_as_learned() -> None:
    dialog = [["[INST] one [/INST]", " first"], ["[INST] two [/INST]", " second"]]
    page = data_card_page.render(card(samples={"train": [dialog]}))
    shown = re.findall(r"<div class='label'>(prompt|completion): ([^<]*)</div><pre[^>]*>\n([^<]*)</pre>", page)
    assert shown[-4:] == [
        ("prompt", "read, not learned", "[INST] one [/INST]"),
        ("completion", "learned", " first"),
        ("prompt", "read, not learned", "[INST] two [/INST]"),
        ("completion", "learned", " second"),
    ]


def test_a_text_that_begins_with_a_line_break_keeps_it() -> None:
    page = data_card_page.render(card(samples={"train": [[["p", "\n{"]]]}))
    assert "class='completion'>\n\n{" in page


# ---------------------------------------------------------------- what may be missing


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("part", ["tokens", "cost", "template", "uris", "samples"])
@pytest.mark.parametrize("absent", [True, False])
def test_each_optional_part_may_be_null_or_absent(name: str, part: str, absent: bool) -> None:
    one = card(name)
    if absent:
        one.pop(part, None)
    else:
        one[part] = None
    Page(data_card_page.render(one))


def test_a_missing_part_says_why() -> None:
    shown = Page(data_card_page.render(card("chat_without_tokenizer"))).text
    assert shown.count("no tokenizer was given") >= 4
    assert "no truncation" not in shown  # nobody looked
    assert "nowhere: the data was only checked" in shown
    assert "no instance type was given" in Page(data_card_page.render(card("small_instruction", cost=None))).text


def test_a_price_that_is_not_known_is_no_price_of_zero() -> None:
    shown = Page(data_card_page.render(card("large_domain"))).text
    assert "no price is known" in shown and "$0" not in shown


def test_a_card_without_rows_has_a_page() -> None:
    empty = card("small_instruction")
    empty["counts"] = dict.fromkeys(empty["counts"], 0)
    empty["rows"] = dict.fromkeys(empty["rows"], 0)
    for split in data_card_page.SPLITS:
        empty["tokens"]["histogram"][split] = [0] * len(empty["tokens"]["histogram"][split])
        empty["tokens"]["splits"][split] = dict.fromkeys(empty["tokens"]["splits"][split], 0)
    assert "not fit to train on yet" in Page(data_card_page.render(empty)).text


numbers = st.integers(0, 10**9)


@given(
    st.lists(st.integers(1, 10**6), min_size=1, max_size=12, unique=True).map(lambda edges: [0, *sorted(edges)]),
    st.integers(1, 10**6),
    st.data(),
)
def test_any_histogram_can_be_drawn_within_its_picture(edges: list[int], limit: int, data: st.DataObject) -> None:
    one = card("small_instruction")
    bins = st.lists(numbers, min_size=len(edges) - 1, max_size=len(edges) - 1)
    one["tokens"] |= {
        "max_input_length": limit,
        "histogram": {"edges": edges, **{split: data.draw(bins) for split in data_card_page.SPLITS}},
    }
    text = data_card_page.render(one)
    Page(text)
    assert "nan" not in re.sub("[a-z]*nan[a-z]+", "", text) and "height='-" not in text and "width='-" not in text
    for x, width in re.findall(r"<rect x='([\d.]+)' y='[\d.]+' width='([\d.]+)' height='[\d.]+' fill", text):
        assert float(x) + float(width) <= 340


@given(
    st.fixed_dictionaries(
        dict.fromkeys(("train", "validation", "test", "quarantined", "exact", "near", "out"), numbers)
    )
)
def test_the_flow_fills_the_width_and_no_part_of_it_is_invisible(n: dict[str, int]) -> None:
    counts = {split: n[split] for split in data_card_page.SPLITS}
    rows = {
        "read": sum(n.values()),
        "kept": sum(counts.values()),
        "quarantined": n["quarantined"],
        "exact_duplicates": n["exact"],
        "near_duplicates": n["near"],
        "left_out": n["out"],
    }
    text = data_card_page.rows_flow(card(rows=rows, counts=counts))
    bars = [(float(x), float(w)) for x, w in re.findall(r"<rect x='([\d.]+)' y='74' width='([\d.]+)'", text)]
    assert len(bars) == sum(number > 0 for number in n.values())
    assert all(width >= 5 for _, width in bars)
    if bars:
        assert sum(bars[-1]) == pytest.approx(1000, abs=0.2)
        assert all(x + width <= after + 0.2 for (x, width), (after, _) in pairwise(bars))


# ---------------------------------------------------------------- the verdict


def level(one: dict[str, Any]) -> str:
    match = re.search(r"<section class='verdict (\w+)'>", data_card_page.render(one))
    assert match
    return match[1]


def test_the_headline_says_what_the_rows_are_for() -> None:
    shown = Page(data_card_page.render(card("small_instruction"))).text
    assert "241 rows are ready: 160 to train, 20 to validate, 61 held out" in shown
    assert "No leaks between splits, no personal data, no truncation, no quarantined rows." in shown


def test_good_data_is_good_and_an_exact_duplicate_is_no_worry() -> None:
    assert level(card("small_instruction")) == "passed"


@pytest.mark.parametrize(
    ("change", "section", "expected"),
    [
        ({"rows": {"quarantined": 1}, "quarantine": {"limit": 1}}, "quarantine", "look"),
        ({"rows": {"quarantined": 2}, "quarantine": {"limit": 1}}, "quarantine", "refused"),
        ({"rows": {"near_duplicates": 1}}, "duplicates", "look"),
        ({"personal_data": {"kinds": {"email": {"findings": 1, "rows": 1}}}}, "personal-data", "look"),
        (
            {"personal_data": {"policy": "redact", "kinds": {"email": {"findings": 1, "rows": 1}}}},
            "personal-data",
            "passed",
        ),
        ({"counts": {"validation": 0}}, "splits", "refused"),
    ],
)
def test_what_stands_out_is_told_first_and_leads_to_its_section(
    change: dict[str, Any], section: str, expected: str
) -> None:
    one = card("small_instruction")
    for part, changes in change.items():
        one[part] |= changes
    assert level(one) == expected
    page = data_card_page.render(one)
    assert page.index(f"href='#{section}'") < page.index("<h2>")


def test_leaks_are_told_for_each_pair_of_splits() -> None:
    one = card("small_instruction")
    one["leaks"]["pairs"][0] |= {"overlapping_rows": 1}
    assert level(one) == "look"
    assert "Leaks: 1 of 61 test rows (1.6 %) in train" in Page(data_card_page.render(one)).text


@pytest.mark.parametrize(("mode", "expected"), [("instruction", "refused"), ("domain", "look")])
def test_truncation_above_its_limit_is_a_refusal_where_there_is_one(mode: str, expected: str) -> None:
    one = card("small_instruction", tuning_mode=mode)
    one["tokens"]["truncated"] = {"rows": 9, "share": 0.05, "limit": 0.01, "tokens_lost": 1234}
    assert level(one) == expected
    assert "9 rows (5 %) longer than max_input_length: 1,234 tokens cut off" in Page(data_card_page.render(one)).text


# ---------------------------------------------------------------- numbers, and the other page


def test_numbers_are_written_for_people() -> None:
    def plain(text: str) -> str:
        return text.replace(page_style.NO_BREAK, " ")

    assert page_style.count(1234567) == "1,234,567"
    assert page_style.count(1, "row") == "1 row" and page_style.count(0, "row") == "0 rows"
    assert [plain(page_style.percent(share)) for share in (0, 0.0001, 0.123, 0.1, 0.9999, 1)] == [
        "0 %", "< 0.1 %", "12.3 %", "10 %", "> 99.9 %", "100 %",
    ]  # fmt: skip
    assert page_style.percent_of(1, 0) == "-"
    assert [page_style.duration(hours) for hours in (0.0001, 0.0038, 0.0417, 30.5)] == [
        "less than 1 s", "14 s", "2 min 30 s", "30 h 30 min",
    ]  # fmt: skip
    assert [page_style.size(size) for size in (999, 51_234, 2_400_000, 3e13)] == [
        "999 bytes", "51.2 kB", "2.4 MB", "30.0 TB",
    ]  # fmt: skip
    assert page_style.dollars(0.001) == "less than $0.01" and page_style.dollars(1234.5) == "$1,234.50"


# ---------------------------------------------------------------- the evaluation report


def rendered(rows: list[AnswerRow] | None = None, **changes: Any) -> Page:
    return Page(report_page.render(evaluations.evaluation(**changes), evaluations.answers() if rows is None else rows))


def all_texts(value: Any, text: str) -> Any:
    """The same evaluation with every text that is not the program's own replaced by `text`."""
    own = ("direction", "compared_with", "tuning_mode")
    if is_dataclass(value) and not isinstance(value, type):
        kept = {one.name: getattr(value, one.name) for one in fields(value)}
        return replace(value, **{name: one if name in own else all_texts(one, text) for name, one in kept.items()})
    if isinstance(value, dict):
        return {key: all_texts(one, text) for key, one in value.items()}
    if isinstance(value, list):
        return [all_texts(one, text) for one in value]
    return text if isinstance(value, str) else value


def without_champion() -> Evaluation:
    found = evaluations.evaluation()

    def stripped(metric: Metric) -> Metric:
        return replace(
            metric,
            values={name: one for name, one in metric.values.items() if name != "champion"},
            improvements={"base": metric.improvements["base"]},
        )

    return replace(
        found,
        models={name: one for name, one in found.models.items() if name != "champion"},
        metrics={name: stripped(one) for name, one in found.metrics.items()},
        slices=[
            replace(one, metrics={name: stripped(metric) for name, metric in one.metrics.items()})
            for one in found.slices
        ],
        ancestors=replace(found.ancestors, champion_package=None),
    )


@pytest.mark.parametrize("passed", [True, False])
def test_the_verdict_and_its_reasons_come_first(passed: bool) -> None:
    page = rendered(gate=evaluations.verdict(passed))
    start = page.text[page.text.index("Evaluation:") :]
    assert start.startswith(f"Evaluation: {'passed' if passed else 'refused'}")
    reason = "bits per byte: improvement over the champion"
    assert start.index(reason) < start.index("The gate's checks") < start.index("Metrics, with 95 % intervals")
    assert ("1 of 3 checks failed" in start) is not passed


def test_texts_of_an_evaluation_are_never_markup_and_only_our_script_runs() -> None:
    row = all_texts(evaluations.answers()[0], ATTACK)
    text = report_page.render(all_texts(evaluations.evaluation(), ATTACK), [row, replace(row, prompt=f"{ATTACK}2")])
    page = Page(text)
    assert page.scripts == [answers_section.SCRIPT]
    assert "<img" not in text and "<!--" not in text and text.count("<script") == 1
    assert "default-src 'none'" in text and "script-src 'sha256-" in text
    assert " ".join(ATTACK.split()) in page.text


def test_the_report_needs_nothing_from_elsewhere() -> None:
    text = report_page.render(evaluations.evaluation(), evaluations.answers())
    assert "://" not in text.replace("arn:aws", "")
    assert {link for link in Page(text).links if not link.startswith("#")} == {"data_card.html"}
    assert "data_card.html" not in report_page.render(evaluations.evaluation(data_card=False), [])


@given(st.text())
def test_any_text_leaves_the_report_well_formed(text: str) -> None:
    rows = [all_texts(row, text) for row in evaluations.answers()]
    report = report_page.render(all_texts(evaluations.evaluation(), text), rows)
    report.encode("utf-8")
    Page(report)


def test_without_a_champion_the_report_says_so_and_compares_with_the_base_alone() -> None:
    rows = [
        replace(row, answers={name: one for name, one in row.answers.items() if name != "champion"})
        for row in evaluations.answers()
    ]
    page = Page(report_page.render(without_champion(), rows))
    assert "there is no champion yet" in page.text and "Against the base" in page.text
    assert "Against the champion" not in page.text


def test_a_metric_that_is_no_number_is_told_and_never_drawn() -> None:
    broken = replace(
        evaluations.metrics()["perplexity"],
        values={name: Value(None, None, None) for name in ("base", "tuned")},
        improvements={"base": Improvement(None, None)},
    )
    check = evaluations.check("perplexity", "base", 0.0, 1.0, passed=False)
    unmeasured = replace(check, value=None, interval=None)
    gate = Verdict(False, ["perplexity is not a finite number"], "refused", [unmeasured])
    text = report_page.render(evaluations.evaluation(metrics={"perplexity": broken}, gate=gate, slices=[]), [])
    page = Page(text)
    assert "perplexity is not a finite number" in page.text and "not finite" in page.text
    assert "not a number against the base" in page.text
    assert "<svg class='interval'" not in text


@pytest.mark.parametrize(("value", "shown"), [(0.0, "0 rows"), (1.0, "1 row"), (None, "not known")])
def test_the_check_of_test_rows_seen_in_training_is_told_in_rows(value: float | None, shown: str) -> None:
    passed = value == 0
    seen = Check("any", OVERLAP, "number", "lower", 1, 0, passed, False, "seen", None, value, None)
    page = rendered(gate=Verdict(passed, ["seen"], "seen", [seen]))
    checks = page.text[page.text.index("measured, 95 % interval") :]
    outcome = "✓ holds" if passed else "✗ fails"
    assert checks[: checks.index("Metrics")].startswith("measured, 95 % intervalrowstest rows seen in training") and (
        f"{outcome}none{shown}" in checks
    )


def test_a_domain_report_shows_the_prompts_before_and_after() -> None:
    def answer(text: str) -> Answer:
        return Answer(text, False, 20, None, {"repetition": 0.5})

    rows = [
        AnswerRow(str(number), prompt, None, None, {"base": answer("a ship"), "tuned": answer("net sales rose")})
        for number, prompt in enumerate(("This report shows that", "Our vision is"))
    ]
    page = rendered(rows, tuning_mode="domain", slices=[], slice_column=None)
    assert "domain adaptation" in page.text and "Our vision is" in page.text and "net sales rose" in page.text
    assert "Worst regressions" not in page.text  # there is nothing to compare the answers with
    assert "By category" not in page.text


def test_a_report_without_answers_says_why() -> None:
    assert "No prompts were given" in rendered([]).text


def test_the_answers_that_changed_most_come_first_and_the_worst_are_told_apart() -> None:
    page = rendered()
    answers = page.text[page.text.rindex("Answers side by side") :]
    assert answers.index("Dogs are welcome") < answers.index("last ferry") < answers.index("Name the vessel")
    regressions = page.text[page.text.index("Worst regressions", page.text.index("Values")) :]
    assert "1 of 3 answers (33.3 %) is worse than the base's by ROUGE-L" in regressions
    assert "At 22:14, from pier four." in regressions[: regressions.index("By category")]


def test_an_empty_answer_is_shown_as_one() -> None:
    row = evaluations.answers()[0]
    empty = replace(row, answers={**row.answers, "tuned": replace(row.answers["tuned"], text="", tokens=0)})
    assert "(empty)" in rendered([empty]).text


def test_what_all_prompts_share_is_shown_once() -> None:
    opening = "Below is an instruction that describes a task, paired with an input. Write a response.\n\n"
    row = evaluations.answers()[0]
    rows = [replace(row, prompt=f"{opening}### Input:\n{word}\n\n### Response:\n") for word in ("cats", "dogs")]
    shared = answers_section.Shared.of(rows)
    assert shared.beginning == f"{opening}### Input:\n" and shared.end == "\n\n### Response:\n"
    assert [shared.without(one.prompt) for one in rows] == ["… cats …", "… dogs …"]
    assert "Every prompt begins and ends with the same words" in rendered(rows).text


@given(st.lists(st.text(st.sampled_from("ab \n"), max_size=200), max_size=6))
def test_a_prompt_is_its_shared_parts_and_its_own(prompts: list[str]) -> None:
    row = evaluations.answers()[0]
    shared = answers_section.Shared.of([replace(row, prompt=prompt) for prompt in prompts])
    for prompt in prompts:
        own = shared.without(prompt).removeprefix("… " if shared.beginning else "")
        own = own.removesuffix(" …" if shared.end else "")
        assert (shared.beginning + own + shared.end).split() == prompt.split()


finite = st.floats(-1e6, 1e6)


@given(st.lists(finite, min_size=1, max_size=900), st.lists(st.one_of(finite, st.none()), max_size=5))
def test_any_losses_can_be_drawn_within_their_picture(learned: list[float], validated: list[float | None]) -> None:
    training = replace(
        evaluations.evaluation().training,
        learned=[Point(step, loss) for step, loss in enumerate(learned, start=1)],
        validation=[Point(step, loss) for step, loss in enumerate(validated)],
    )
    text = report_page.training(evaluations.evaluation(training=training))
    assert "nan" not in text and "inf" not in text
    for path in re.findall(r"<path d='M([^'V]+)' stroke='var\(--(?:train|validation)\)'", text):
        numbers = [float(number) for number in re.findall(r"-?[\d.]+", path.replace("h0", ""))]
        assert len(numbers) <= 2 * charts.POINTS_DRAWN
        assert all(-0.01 <= number <= 100.01 for number in numbers)


@given(finite, finite, finite, st.one_of(st.none(), finite))
def test_any_interval_can_be_drawn_within_its_picture(
    one: float, other: float, value: float, margin: float | None
) -> None:
    low, high = sorted((one, other))
    reach = max(abs(low), abs(high), abs(value))
    text = charts.interval(low, high, value, reach, "var(--good)", margin, "label")
    places = [float(number) for number in re.findall(r"d='M([\d.-]+) ", text)]
    assert all(math.isfinite(place) and 0 < place < 100 for place in places)


@given(finite, finite)
def test_ticks_are_round_and_hold_all_values(one: float, other: float) -> None:
    low, high = sorted((one, other))
    ticks = charts._ticks(low, high)
    step = ticks[1] - ticks[0]
    assert ticks[0] <= low + 1e-6 * step and ticks[-1] >= high - 1e-6 * step and 2 <= len(ticks) <= 7
