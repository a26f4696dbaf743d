"""report.html of a comparison: a user's prompts with the answers before and after fine-tuning."""

from pipeline_steps import answers_section, page_style
from pipeline_steps.answers_section import Scoring
from pipeline_steps.contract.comparison import Comparison, Text
from pipeline_steps.contract.evaluation import Answer, AnswerRow
from pipeline_steps.page_style import Html, count, html, joined


def render(comparison: Comparison) -> str:
    """The page for a comparison (the content of comparison.json)."""
    rows = [
        AnswerRow(str(number), pair.prompt, None, None, {"base": _answer(pair.base), "tuned": _answer(pair.tuned)})
        for number, pair in enumerate(comparison.pairs, start=1)
    ]
    parameters = ", ".join(f"{name} {value}" for name, value in comparison.sampling.told().items())
    body = joined(
        [
            Html(
                f"<h1>Before and after fine-tuning: {count(len(rows), 'prompt')}</h1>\n"
                f"<p class='soft'>{html(comparison.base_model)} and the model tuned from it. Parameters of every answer: "
                f"{html(parameters)}.</p>\n<h2>Your prompts</h2>\n"
            ),
            answers_section.answers(rows, Scoring(None, "")),
            Html("\n<h2>Ancestors</h2>\n"),
            page_style.rows_table(
                [
                    ("base model", f"{comparison.base_model}, {comparison.base_model_digest}"),
                    ("dataset", comparison.dataset_digest),
                    ("tuning mode", comparison.tuning_mode),
                    ("method", comparison.method),
                    ("answered in", page_style.duration(comparison.seconds / 3600)),
                ]
            ),
        ]
    )
    return page_style.page(
        "Before and after fine-tuning", body, style=answers_section.STYLE, script=answers_section.SCRIPT
    )


def _answer(text: Text) -> Answer:
    return Answer(text.text, text.ended, text.tokens, None, {})
