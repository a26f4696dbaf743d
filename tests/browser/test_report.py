"""The reports in a real browser: accessible, self-contained, searchable by keyboard, readable on a phone and without script."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from playwright.sync_api import Page

from pipeline_steps import comparison_page, data_card_page, report_page
from pipeline_steps.contract.comparison import Comparison, Pair, Sampling, Text
from pipeline_steps.contract.evaluation import Answer, AnswerRow, Verdict
from tests import evaluations
from tests.browser.conftest import Reader
from tests.pages import data_card

ATTACK = "<script>document.title = 'hacked'</script><img src=x onerror='document.title = 1'>"
MANY = 600


def rows(number: int = 3, **changes: Any) -> list[AnswerRow]:
    """The sample's rows over and over, told apart by their prompts."""
    sample = evaluations.answers()
    return [
        replace(sample[place % 3], id=f"{place:016x}", prompt=f"{sample[place % 3].prompt}case {place}\n", **changes)
        for place in range(number)
    ]


def with_text(row: AnswerRow, text: str) -> AnswerRow:
    answers = {name: replace(answer, text=text) for name, answer in row.answers.items()}
    return replace(row, prompt=text, reference=text, answers=answers)


def domain_report() -> str:
    def answer(text: str) -> Answer:
        return Answer(text, False, 24, None, {"repetition": 0.1})

    prompts = [
        AnswerRow(f"{place:016x}", prompt, None, None, {"base": answer("a ship"), "tuned": answer("net sales rose")})
        for place, prompt in enumerate(("This annual report shows that", "We serve consumers through", "Our vision is"))
    ]
    metrics = {name: one for name, one in evaluations.metrics().items() if name in ("loss", "perplexity")}
    found = evaluations.evaluation(tuning_mode="domain", metrics=metrics, slices=[], slice_column=None)
    return report_page.render(found, prompts)


PAIR = Pair("Our vision is", Text("to be the best", 4, False), Text("a ferry for every island", 6, True))
REPORTS: dict[str, Callable[[], str]] = {
    "passed": lambda: report_page.render(evaluations.evaluation(), rows(8)),
    "refused": lambda: report_page.render(evaluations.evaluation(gate=evaluations.verdict(False)), rows(60)),
    "refused without checks": lambda: report_page.render(
        evaluations.evaluation(gate=Verdict(False, ["no check applies"], "refused", []), slices=[]), []
    ),
    "domain": domain_report,
    "long answers": lambda: report_page.render(
        evaluations.evaluation(), [with_text(row, "a long answer with many words in it " * 400) for row in rows()]
    ),
    "comparison": lambda: comparison_page.render(
        Comparison("domain", "tiny", "b" * 64, "d" * 64, "lora", Sampling(), [PAIR] * 8, 3.2)
    ),
    "data card": lambda: data_card_page.render(data_card("large_domain")),
}


@pytest.mark.parametrize(("device", "scheme"), [("desktop", "dark"), ("phone", "light")])
@pytest.mark.parametrize("report", REPORTS)
def test_axe_finds_no_violation(reader: Reader, report: str, device: str, scheme: str) -> None:
    page = reader.open(REPORTS[report](), device, scheme, axe=True)
    for details in page.locator("details").all():
        details.evaluate("element => element.open = true")
    assert reader.violations(page) == []


@pytest.mark.parametrize("report", REPORTS)
def test_a_page_is_quiet_asks_for_nothing_and_fits_a_phone(reader: Reader, report: str) -> None:
    page = reader.open(REPORTS[report](), "phone")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert reader.complaints == []
    assert [url.rsplit("/", 1)[-1] for url in reader.requests] == ["report.html"]


def test_the_verdict_and_its_first_reason_are_seen_without_scrolling(opened: Callable[..., Page]) -> None:
    for device in ("desktop", "phone"):
        page = opened(REPORTS["refused"](), device)
        for shown in (page.get_by_role("heading", level=1), page.locator(".reasons li").first):
            box = shown.bounding_box()
            assert box and box["y"] + box["height"] < 500


def test_a_row_with_a_script_tag_shows_as_text(reader: Reader) -> None:
    row = with_text(evaluations.answers()[0], ATTACK)
    gate = Verdict(False, [ATTACK], ATTACK, [])
    page = reader.open(report_page.render(evaluations.evaluation(gate=gate), [row, *rows()]))
    assert page.title() == "Evaluation: refused"
    assert page.locator("#answer-list").get_by_text(ATTACK).count() >= 4
    assert page.locator("img").count() == 0 and page.locator("script").count() == 1
    assert reader.complaints == []


def test_no_other_script_than_ours_would_run_in_the_page(reader: Reader) -> None:
    text = REPORTS["passed"]().replace("</main>", "<script>document.title = 'hacked'</script></main>")
    page = reader.open(text)
    assert page.title() == "Evaluation: passed"
    assert any("Content Security Policy" in complaint for complaint in reader.complaints)


def test_right_to_left_text_and_emoji_are_shown_in_their_direction(opened: Callable[..., Page]) -> None:
    text = "העבורת יוצאת בשבע 🚢"
    page = opened(report_page.render(evaluations.evaluation(), [with_text(evaluations.answers()[0], text), *rows()]))
    shown = page.locator("#answer-list pre", has_text=text).first
    assert shown.evaluate("element => getComputedStyle(element).direction") == "rtl"
    assert page.locator("h1").evaluate("element => getComputedStyle(element).direction") == "ltr"


# ---------------------------------------------------------------- the answers


def visible(page: Page) -> list[str]:
    """The row numbers of the answers that are shown."""
    return [item.get_attribute("data-row") or "" for item in page.locator("#answer-list > li:not([hidden])").all()]


@pytest.fixture
def many(opened: Callable[..., Page]) -> Page:
    return opened(report_page.render(evaluations.evaluation(), rows(MANY)))


def test_twenty_answers_are_shown_at_once_and_more_by_keyboard(many: Page) -> None:
    assert len(visible(many)) == 20
    more = many.get_by_role("button", name="Show 20 more")
    more.focus()
    many.keyboard.press("Enter")
    assert len(visible(many)) == 40
    focused = many.evaluate("document.activeElement.closest('li').dataset.row")
    assert focused == visible(many)[20]  # the reader goes on where the new ones begin
    assert "600 rows, 40 shown" in many.get_by_role("status").inner_text()


def test_the_search_finds_words_of_prompts_and_answers_as_they_are_typed(many: Page) -> None:
    many.get_by_label("Search prompts and answers").focus()
    many.keyboard.type("FERRY last")
    assert visible(many) == [str(number) for number in range(2, 62, 3)]
    assert many.get_by_role("status").inner_text() == "200 of 600 rows fit"
    many.keyboard.press("ControlOrMeta+A")
    many.keyboard.type("no such words")
    assert visible(many) == []
    assert many.get_by_role("status").inner_text() == "0 of 600 rows fit"


def test_answers_can_be_filtered_and_ordered(many: Page) -> None:
    many.get_by_label("Show").select_option(label="worse than base (200)")
    assert set(visible(many)) <= {str(number) for number in range(2, MANY, 3)}
    many.get_by_label("Show").select_option(label="all (600)")
    many.get_by_label("Order").select_option(label="as in the test set")
    assert visible(many) == [str(number) for number in range(1, 21)]
    many.get_by_label("Order").select_option(label="worst first")
    assert visible(many)[0] == "2"


def test_a_link_to_a_row_shows_it_wherever_it_is(many: Page) -> None:
    many.get_by_label("Search prompts and answers").fill("kittiwake")
    many.evaluate("location.hash = 'row-599'")
    shown = many.locator("#row-599")
    shown.wait_for(state="visible")
    assert many.get_by_label("Search prompts and answers").input_value() == ""
    box = shown.bounding_box()
    assert box and 0 <= box["y"] < 900


def test_without_script_every_answer_is_there_and_no_dead_control(opened: Callable[..., Page]) -> None:
    page = opened(report_page.render(evaluations.evaluation(), rows(60)), script=False)
    assert len(visible(page)) == 60
    for control in ("#answer-tools", "#answer-more"):
        assert not page.locator(control).is_visible()
    page.locator("details > summary").first.click()  # needs no script
    assert page.locator("details").first.get_attribute("open") is not None


def test_a_long_answer_has_a_box_that_scrolls_by_keyboard(opened: Callable[..., Page]) -> None:
    page = opened(REPORTS["long answers"](), "phone")
    box = page.locator("#answer-list pre.long").first
    assert (box.bounding_box() or {})["height"] < 420
    box.focus()
    page.keyboard.press("End")
    until_scrolled = "element.scrollTop > 0 ? done(true) : requestAnimationFrame(look)"
    assert box.evaluate(f"element => new Promise(done => {{ const look = () => {until_scrolled}; look(); }})")


def test_every_control_is_reached_by_tab_in_the_order_of_the_page(opened: Callable[..., Page]) -> None:
    page = opened(REPORTS["passed"]())
    seen = []
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.textContent.slice(0, 30)"))
        if seen[-1] == "answer-order":
            break
    assert [name for name in seen if re.match("answer-", name)] == ["answer-search", "answer-show", "answer-order"]
    assert seen[0] == "The gate's checks"


def test_everything_is_printed(many: Page) -> None:
    many.emulate_media(media="print")
    assert many.locator("#row-599").evaluate("element => getComputedStyle(element).display") != "none"
    assert not many.locator("#answer-tools").is_visible()
