"""What a tuned model's folder holds so that the serving image asks the model as it was trained.

Both forms of a request are written as in training: `inputs` with columns by the package's prompt template, through
model.py (serving_formatter.py), and a chat by the tokenizer's chat template, which vLLM applies. That is the base model's
own where it was trained with it, and else one made of the prompt template.
"""

import json
import pkgutil
from pathlib import Path
from typing import Any

from pipeline_steps.contract import chat_format, files, json_files
from pipeline_steps.contract.chat_format import ChatFormat
from pipeline_steps.contract.prompt_template import PARTS, PromptTemplate
from pipeline_steps.models import leading_text

MODEL_PY = "model.py"


def write(folder: Path, template: PromptTemplate | None, chat: ChatFormat | None, tokenizer: Any) -> None:
    """Put the tokenizer into `folder` with the chat template that fits the training, and what else belongs to that.

    With `template` prompt_template.json and model.py, with `chat` chat_format.json. With neither (domain texts) the
    tokenizer stays as it is.
    """
    before = tokenizer.chat_template
    if template:
        json_files.write(folder / files.PROMPT_TEMPLATE_FILE, {"schema_version": 1, **template.to_dict()})
        source = pkgutil.get_data("pipeline_steps", "serving_formatter.py")  # the steps may lie in a zip
        assert source is not None
        (folder / MODEL_PY).write_bytes(source)
        tokenizer.chat_template = chat_template(template, bos_token=leading_text(tokenizer))
    if chat:
        chat_format.write(folder, chat)
        tokenizer.chat_template = chat.template
    tokenizer.save_pretrained(folder)
    tokenizer.chat_template = before


def chat_template(template: PromptTemplate, bos_token: str) -> str:
    """A chat of one question as the model's prompt, in Jinja.

    The user's message is the prompt's first column, the system's message (or nothing) the second. The model has learned
    single answers, so an answer before the question, or a third column, is refused.
    """
    columns = template.prompt_columns
    if len(columns) > 2:
        words = f"this model was trained on a prompt with the columns {', '.join(columns)}; ask with inputs and columns"
        return f"{{{{ raise_exception({json.dumps(words)}) }}}}"
    values = dict(zip(columns, ("question", "background"), strict=False))
    parts, place = [], 0
    for match in PARTS.finditer(template.prompt):
        parts += [_text(template.prompt[place : match.start()]), values[match[1]] if match[1] else _text(match[0][0])]
        place = match.end()
    parts.append(_text(template.prompt[place:]))
    check = (
        "{%- if messages | length > 2 or messages[-1].role != 'user' or (messages | length == 2 and "
        "messages[0].role != 'system') %}{{ raise_exception('this model answers one question: an optional system "
        "message and one user message') }}{% endif -%}"
    )
    names = (
        "{%- set question = messages[-1].content -%}"
        "{%- set background = messages[0].content if messages | length == 2 else '' -%}"
    )
    return check + names + "{{ " + " ~ ".join([_text(bos_token), *parts]) + " }}"


def _text(text: str) -> str:
    """A text as a literal in Jinja."""
    return json.dumps(text)
