"""Dialogs by the base model's own chat template: exactly the answers are learned, as an endpoint will ask for them."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_steps import serving, token_files
from pipeline_steps.contract import chat_format, dataset, files
from pipeline_steps.contract.chat_format import ChatTemplateError, DialogError, Turns
from pipeline_steps.contract.dataset import Example
from pipeline_steps.contract.errors import DataError
from pipeline_steps.contract.prompt_template import DEFAULT
from pipeline_steps.data.instances_engine import InstancesEngine
from pipeline_steps.data.sagemaker_job import Instances
from pipeline_steps.models import chat_format_of, load_tokenizer
from pipeline_steps.prepare_data import PrepareJob, prepare
from pipeline_steps.text_encoder import TextEncoder
from tests.pipeline_steps import tokenizers_of_families as families

DIALOG = [("user", "What is {1}?"), ("assistant", "It is one."), ("user", "And 2?"), ("assistant", "It is two.")]
TOKENIZERS = {name: families.instruct(name) for name in families.INSTRUCT}
FORMATS = {name: chat_format_of(tokenizer) for name, tokenizer in TOKENIZERS.items()}
# Texts without line ends and white space at their ends, which templates take away.
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Co", "Zl", "Zp"]), max_size=12).map(
    lambda text: f"a{text}z"
)


def example_of(name: str, dialog: Turns) -> Example:
    *history, (prompt, completion) = FORMATS[name].turns(dialog)
    return Example(prompt, completion, ends=True, history=tuple(history))


def runs(name: str, dialog: Turns) -> list[tuple[bool, list[int]]]:
    """The dialog's token ids in runs of the same decision: learned or not."""
    row = token_files.encode([example_of(name, dialog)], TextEncoder.of(TOKENIZERS[name]))[0]
    found: list[tuple[bool, list[int]]] = []
    for token, learned in zip(row.ids.tolist(), row.learned.tolist(), strict=True):
        if not found or found[-1][0] != learned:
            found.append((learned, []))
        found[-1][1].append(token)
    return found


def served(name: str, turns: Turns) -> list[int]:
    """What a server that has the tuned model's tokenizer makes of a request with these turns."""
    tokenizer = TOKENIZERS[name]
    messages = [{"role": role, "content": text} for role, text in turns]
    text = tokenizer.apply_chat_template(
        messages, chat_template=FORMATS[name].template, add_generation_prompt=True, tokenize=False
    )
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("name", families.INSTRUCT)
@settings(max_examples=15, deadline=None)
@given(questions=st.lists(TEXTS, min_size=2, max_size=2), answers=st.lists(TEXTS, min_size=2, max_size=2))
def test_what_is_learned_is_the_answers_and_their_ends_after_what_a_server_asks_with(
    name: str, questions: list[str], answers: list[str]
) -> None:
    first, second = [
        (("user", question), ("assistant", answer)) for question, answer in zip(questions, answers, strict=True)
    ]
    decode, end = TOKENIZERS[name].decode, TOKENIZERS[name].eos_token
    found = runs(name, [*first, *second])
    learned = [decode(ids).removeprefix(" ") for is_learned, ids in found if is_learned]
    whole = [token for _, ids in found for token in ids]
    asked_last = served(name, [*first, second[0]])
    # Of the first SentencePiece version every text begins with a space, an answer too, as in Mistral's own encoding of
    # turns; a server reads earlier answers without it.
    assert whole[: len(asked_last)] == asked_last or name == "mistral-0.1"
    if name == "qwen-3":  # the first answer is written without the empty thought that it is asked for with
        assert learned == [answers[1] + end]
    else:
        assert learned == [answers[0] + end, answers[1] + end]
        asked_first = served(name, first[:1])
        assert whole[: len(asked_first)] == asked_first and found[0][1] == asked_first


@pytest.mark.parametrize("name", families.INSTRUCT)
def test_a_dialog_reads_as_transformers_renders_it(name: str) -> None:
    tokenizer, chat = TOKENIZERS[name], FORMATS[name]
    messages = [{"role": role, "content": text} for role, text in DIALOG]
    for turns, asks in ((messages[:3], True), (messages, False)):
        theirs = tokenizer.apply_chat_template(
            turns, chat_template=chat.template, add_generation_prompt=asks, tokenize=False
        )
        ours = chat.asked(DIALOG[:3]) if asks else chat._rendered(DIALOG, asks=False)
        assert chat.beginning + ours == theirs
    if name not in ("qwen-3", "llama-3"):  # without thoughts and dates nothing is changed
        assert tokenizer.apply_chat_template(messages[:3], add_generation_prompt=True, tokenize=False) == (
            chat.beginning + chat.asked(DIALOG[:3])
        )


def test_a_system_text_that_the_template_moves_leaves_the_last_answer_to_be_learned() -> None:
    dialog = [("system", "Be brief."), *DIALOG]
    turns = FORMATS["mistral-0.3"].turns(dialog)
    assert turns == (("[INST] What is {1}?[/INST] It is one.</s>[INST] Be brief.\n\nAnd 2?[/INST]", " It is two."),)
    assert len(FORMATS["llama-3"].turns(dialog)) == 2
    assert "but of a dialog with a system text only the last" in FORMATS["mistral-0.3"].told()
    assert "the last answer is learned, since" in FORMATS["qwen-3"].told()
    with pytest.raises(DialogError, match="Conversation roles must alternate"):
        FORMATS["mistral-0.1"].turns(dialog)


def test_without_a_chat_template_a_dialog_reads_as_mistrals() -> None:
    tokenizer = families.of(*families.MISTRAL_V1, sentencepiece=True)
    chat = chat_format_of(tokenizer)
    assert chat.turns([("system", "Be brief."), *DIALOG]) == (
        ("[INST] Be brief.\n\nWhat is {1}? [/INST]", " It is one."),
        ("[INST] And 2? [/INST]", " It is two."),
    )
    assert chat.told() == "Dialogs are written in Mistral's [INST] form; every answer is learned."


def test_a_template_with_the_days_date_reads_the_same_every_day_and_brings_the_tokenizers_beginning(
    tmp_path: Path,
) -> None:
    source = (
        "{%- for m in messages -%}{%- if m.role == 'user' -%}{{- strftime_now('%H:%M:%S') ~ ' ' ~ m.content ~ ': ' -}}"
        "{%- else -%}{%- generation -%}{{- m.content ~ eos_token -}}{%- endgeneration -%}{%- endif -%}{%- endfor -%}"
    )
    tokenizer = families.instruct("mistral-0.1", source)
    chat = chat_format_of(tokenizer)
    assert chat.turns(DIALOG[:2]) == (("26 Jul 2024 What is {1}?: ", "It is one."),)
    serving.write(tmp_path, None, chat, tokenizer)
    saved = load_tokenizer(tmp_path)
    messages = [{"role": "user", "content": "What is {1}?"}]
    assert saved.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == (
        "<s>26 Jul 2024 What is {1}?: "
    )
    assert chat_format_of(saved) == chat == chat_format.read(tmp_path), "a tuned model can be tuned again"


CHATML = "{% for m in messages %}<{{ m.role }}>{{ m.content }}END{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (CHATML.replace("END", "<|end|>"), "the end-of-sequence '</s>' must follow the answer"),
        (
            CHATML.replace("END", "</s>").replace("<assistant>{% endif", "<assistant><think>{% endif"),
            "the answer must follow what it is asked with",
        ),
        ("{{ raise_exception('only with tools') }}", "does not take this dialog: only with tools"),
        ("{% for m in %}", "does not take this dialog: "),
        ("{{ messages.__class__.__mro__ }}", "does not take this dialog: access to attribute '__class__'"),
    ],
)
def test_a_template_whose_answers_cannot_be_told_apart_is_refused_with_what_it_writes(source: str, said: str) -> None:
    with pytest.raises(ChatTemplateError) as caught:
        chat_format_of(families.instruct("mistral-0.1", source))
    assert said in str(caught.value)


def test_an_answer_that_the_template_takes_to_pieces_is_refused() -> None:
    thought = [("user", "a"), ("assistant", "<think>\nhm\n</think>\n\nb")]
    with pytest.raises(DialogError, match="writes question and answer as"):
        FORMATS["qwen-3"].turns(thought)


# ---------------------------------------------------------------- PrepareData


def words(number: int) -> str:
    return " ".join(f"w{number * 7919 % 9973 + place * place}" for place in range(12))


def prepared(
    folder: Path, mode: Any, rows: list[dict[str, Any]], tokenizer: Any
) -> tuple[dict[str, Any], list[Example]]:
    """The data card and the training rows."""
    raw, work = folder / "raw", folder / "work"
    for one in (raw, work):
        one.mkdir(parents=True)
    (raw / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    base = families.base(tokenizer, folder / "base")
    job = PrepareJob(str(raw), work / "report", mode, tokenizer=base)
    card = prepare(job, work, InstancesEngine(work, Instances(), ""), 0.0)
    lines = [path.read_text("utf-8").splitlines() for path in sorted((work / "dataset" / "train").glob("*.jsonl"))]
    return card, [dataset._example(json.loads(line)) for part in lines for line in part]


INSTRUCTIONS = [{"instruction": words(n), "context": words(n + 500), "response": words(n + 900)} for n in range(40)]
DIALOGS = [
    {"messages": [{"role": "user", "content": words(n)}, {"role": "assistant", "content": words(n + 900)}]}
    for n in range(40)
]


def test_an_instruct_model_is_the_template_of_rows_without_one(tmp_path: Path) -> None:
    card, rows = prepared(tmp_path / "instruct", "instruction", INSTRUCTIONS, TOKENIZERS["qwen-2.5"])
    assert rows[0].prompt.startswith("<|im_start|>system\nYou are") and rows[0].prompt.endswith(
        "<|im_start|>assistant\n"
    )
    assert card["template"]["completion"] == "{response}" and "base model's chat template" in card["chat_format"]
    page = (tmp_path / "instruct" / "work" / "report" / files.DATA_CARD_PAGE).read_text("utf-8")
    assert "There is no template.json: the prompt is the base model" in page
    # One that does not end its answers with its end-of-sequence is a base model's, as Qwen's are.
    base = families.of(None, "<|endoftext|>", ["<|im_start|>", "<|im_end|>"])
    base.chat_template = families.template("qwen-2.5")
    other, rows = prepared(tmp_path / "base", "instruction", INSTRUCTIONS, base)
    assert rows[0].prompt.startswith(DEFAULT.prompt[:40]) and other["chat_format"] is None
    with pytest.raises(ChatTemplateError, match=r"'<\|endoftext\|>' must follow the answer"):
        prepared(tmp_path / "chat", "chat", DIALOGS, base)


def test_a_dialog_that_the_template_refuses_is_a_bad_row_with_its_line(tmp_path: Path) -> None:
    with_system = {"messages": [{"role": "system", "content": "Be brief."}, *DIALOGS[0]["messages"]]}
    with pytest.raises(DataError) as caught:
        prepared(tmp_path, "chat", [*DIALOGS, with_system], TOKENIZERS["mistral-0.1"])
    assert caught.value.problems == [
        "x.jsonl:41: the base model's chat template does not take this dialog: "
        "Conversation roles must alternate user/assistant/user/assistant/..."
    ]


def test_another_chat_template_makes_another_dataset_and_the_same_splits(tmp_path: Path) -> None:
    one, rows = prepared(tmp_path / "one", "chat", DIALOGS, TOKENIZERS["mistral-0.1"])
    two, others = prepared(tmp_path / "two", "chat", DIALOGS, families.of(*families.MISTRAL_V1, sentencepiece=True))
    assert one["dataset_digest"] != two["dataset_digest"] and one["counts"] == two["counts"]
    assert [row.completion for row in others] == [f" {row.completion}" for row in rows]
