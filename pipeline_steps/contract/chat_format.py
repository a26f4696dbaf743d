"""How a dialog reads: by the base model's own chat template, or in Mistral's [INST] form where it has none.

One object renders for training, evaluation and comparison, and its template becomes that of the tuned model's tokenizer,
where the serving image finds it. A chat template is Jinja, as transformers and vLLM render it.

Of a dialog exactly the assistant's answers are learned, each with the end-of-sequence after it. They are found by what
the template asks with: the text for the turns up to a question, `add_generation_prompt` set. An endpoint sends that very
text for the same turns, so an answer is learned where the template leaves it right behind it, and nowhere else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline_steps.contract import files, json_files
from pipeline_steps.contract.errors import StepError
from pipeline_steps.contract.prompt_template import PromptTemplate

SCHEMA_VERSION = 1
SHOWN_CHARACTERS = 160
Turns = Sequence[tuple[str, str]]  # role and text of each

# Mistral's form for a base model: a system text goes before the first question.
MISTRAL = (
    "{%- set system = messages[0].content ~ '\\n\\n' if messages[0].role == 'system' else '' -%}"
    "{%- for message in messages if message.role != 'system' -%}"
    "{%- if message.role == 'user' -%}"
    "{{- '[INST] ' ~ (system if loop.first else '') ~ message.content ~ ' [/INST]' -}}"
    "{%- else -%}"
    "{{- ' ' ~ message.content ~ eos_token -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
)
# A template that writes the day's date would make another dataset every day. The day is that of Llama 3.1's template.
FIXED_DATE = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"
# Qwen 3's switch: the data's answers come without a thought before them.
WITHOUT_THINKING = "{% set enable_thinking = false %}"
WITH_BEGINNING = (
    "{{ bos_token }}"  # a chat is encoded as it is rendered, without what the tokenizer would put before it
)

QUESTION, ANSWER = "\ue000", "\ue001"  # private characters stand for texts that no template knows
PROBE = (("user", QUESTION), ("assistant", ANSWER))
INSTRUCTION, CONTEXT = "\ue002", "\ue003"


class ChatTemplateError(StepError):
    """The chat template cannot be used; the message says what it does."""


class DialogError(ValueError):
    """The template does not take this dialog, or does not leave an answer as it stands."""


@dataclass(frozen=True)
class ChatFormat:
    """`template` is Jinja; `tokens` are the special tokens by the names that it uses (bos_token, eos_token, ...).

    `end` is the text of the end-of-sequence token. `beginning` is what the tokenizer puts before every text by itself, or
    nothing; rendered texts come without it, since whoever encodes them adds it.
    """

    template: str
    tokens: Mapping[str, str]
    beginning: str
    end: str

    def asked(self, turns: Turns) -> str:
        """What the model reads before it answers the last of `turns`. Raises DialogError."""
        return self._rendered(turns, asks=True)

    def turns(self, dialog: Turns) -> tuple[tuple[str, str], ...]:
        """What is read and what is learned of a dialog that ends with an answer, in turn. Raises DialogError.

        After each learned text comes the end-of-sequence. An earlier answer that the template writes otherwise than it
        asks for it is read, not learned.
        """
        *earlier, last = [place for place, (role, _) in enumerate(dialog) if role == "assistant"]
        whole, read = self.asked(dialog[:last]), 0
        found = []
        for place in earlier:
            prompt = self.asked(dialog[:place])
            learned = self._found(prompt, whole, dialog[place][1])
            if learned is not None:
                found.append((whole[read : len(prompt)], learned))
                read = len(prompt + learned + self.end)
        return (*found, (whole[read:], self._completion(*dialog[-2:])))

    def prompt_template(self) -> PromptTemplate:
        """The same for rows with JumpStart's default columns: instruction and context are one question."""
        asked = self.asked([("user", f"{INSTRUCTION}\n\n{CONTEXT}")])
        literal = asked.replace("{", "{{").replace("}", "}}")
        prompt = literal.replace(INSTRUCTION, "{instruction}").replace(CONTEXT, "{context}")
        return PromptTemplate(prompt, self._completion(*PROBE).replace(ANSWER, "{response}"))

    def told(self) -> str:
        """For people: whose form it is, and which answers are learned."""
        whose = "in Mistral's [INST] form" if self.template.endswith(MISTRAL) else "by the base model's chat template"
        dialog = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
        learned = "every answer is learned"
        if len(self.turns(dialog)) == 1:
            learned = (
                "the last answer is learned, since the template writes earlier ones otherwise than it asks for them"
            )
        else:
            try:
                if len(self.turns([("system", "s"), *dialog])) == 1:
                    learned += ", but of a dialog with a system text only the last: the template moves that text on"
            except DialogError:
                learned += "; the template takes no system text"
        return f"Dialogs are written {whose}; {learned}."

    def _completion(self, question: tuple[str, str], answer: tuple[str, str]) -> str:
        """The answer as the template writes it. Raises DialogError."""
        asked, written = self.asked([question]), self._rendered([question, answer], asks=False)
        found = self._found(asked, written, answer[1])
        if found is None:
            raise DialogError(
                f"the base model's chat template asks with {_shown(asked)} and writes question and answer as {_shown(written)}; "
                "to be learned, the answer must follow what it is asked with, and the end-of-sequence "
                f"{self.end!r} must follow the answer"
            )
        return found

    def _found(self, asked: str, written: str, answer: str) -> str | None:
        """The answer in a text, right behind what it is asked with and before an end; None if it is not there.

        A template may put white space before it, or take its own away.
        """
        if written.startswith(asked):
            for text in (answer, answer.strip(), answer.strip("\n")):
                before, there, after = written[len(asked) :].partition(text)
                if there and not before.strip() and after.startswith(self.end):
                    return before + text
        return None

    def _rendered(self, turns: Turns, asks: bool) -> str:
        from jinja2 import TemplateError

        messages = [{"role": role, "content": text} for role, text in turns]
        try:
            text = _compiled(self.template).render(
                messages=messages, add_generation_prompt=asks, tools=None, documents=None, **self.tokens
            )
        except (TemplateError, TypeError) as error:
            raise DialogError(f"the base model's chat template does not take this dialog: {error}") from None
        return str(text).removeprefix(self.beginning)


def of(template: str | None, tokens: Mapping[str, str], beginning: str, end: str) -> ChatFormat:
    """The form of a tokenizer with this chat template (None: it has none). Raises ChatTemplateError if it cannot be used."""
    source = template or MISTRAL
    if "strftime_now" in source and FIXED_DATE not in source:
        source = FIXED_DATE + source
    try:
        whole = ChatFormat(source, tokens, "", end).asked(PROBE[:1])
        if not whole.startswith(beginning):
            source = WITH_BEGINNING + source
        tokens = {name: token for name, token in tokens.items() if name in source}
        found = ChatFormat(source, tokens, beginning, end)
        silent = ChatFormat(WITHOUT_THINKING + source, tokens, beginning, end)
        if found.asked(PROBE[:1]) != silent.asked(PROBE[:1]):  # it has the switch
            found = silent
        found._completion(*PROBE)
    except DialogError as error:
        raise ChatTemplateError(str(error)) from None
    return found


def of_no_tokenizer() -> ChatFormat:
    """The form in which data is looked at where no base model is known: Mistral's."""
    return of(None, {"bos_token": "<s>", "eos_token": "</s>"}, "<s>", "</s>")


def write(folder: Path, chat: ChatFormat) -> None:
    """Beside a tuned model: how it was trained to read a dialog."""
    json_files.write(folder / files.CHAT_FORMAT_FILE, {"schema_version": SCHEMA_VERSION, **asdict(chat)})


def read(folder: Path) -> ChatFormat | None:
    """What `write` wrote; None for a model that was trained without."""
    path = folder / files.CHAT_FORMAT_FILE
    if not path.is_file():
        return None
    content = json_files.read(path, SCHEMA_VERSION)
    del content["schema_version"]
    return ChatFormat(**content)


@lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    """The template in the environment that transformers gives it. It came with a model, so it runs in Jinja's sandbox."""
    import json

    from jinja2 import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The tag around an assistant's turn that some templates have; what stands in it is written as it is."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(template)


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN_CHARACTERS else f"...{text[-SHOWN_CHARACTERS:]}")
