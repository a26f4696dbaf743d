"""Continuous batching: every step adds one token to each sequence that is being answered; new ones join between steps."""

import platform
import queue
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from local_aws.lmi.cache import Access, SlotCache
from local_aws.lmi.lora import Adapters
from local_aws.lmi.payloads import BadRequest, Generation

MOST_WAITING = 1000  # as DJL Serving's job queue
MOST_PREFILL_TOKENS = 2048  # that join in one step: those who are being answered wait for them
KEEP_TOKENS = 2048  # an idle cache that is longer gives its memory back


class Overloaded(Exception):
    """There are too many waiting requests."""


@dataclass(frozen=True)
class Token:
    """One step of a sequence: the token, the text that is complete with it, and why it was the last, if it was."""

    id: int
    text: str
    log_probability: float | None
    finish_reason: str | None = None


@dataclass(eq=False)
class Sequence:
    """A request that is being answered."""

    request: Generation
    prompt: list[int]
    limit: int  # new tokens
    generator: torch.Generator | None
    text: "TextSoFar"
    adapter: str | None = None
    ids: list[int] = field(default_factory=list)
    tokens: "queue.SimpleQueue[Token | Exception]" = field(default_factory=queue.SimpleQueue)
    cancelled: bool = False

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.ids)

    def __iter__(self) -> Iterator[Token]:
        """The tokens as they come. Raises what ended the sequence otherwise."""
        while True:
            token = self.tokens.get()
            if isinstance(token, Exception):
                raise token
            yield token
            if token.finish_reason is not None:
                return


class TextSoFar:
    """Token ids -> text in pieces: incomplete characters, and what may become a stop text, are held back."""

    def __init__(self, tokenizer: Any, stop: tuple[str, ...]) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self._ids: list[int] = []
        self._start = self._read = 0  # the ids from _start on are decoded together; those before _read are in _text
        self._text = ""
        self._told = 0
        self.stopped = False

    def add(self, token: int, last: bool) -> str:
        """The text that is certain now and was not before."""
        self._ids.append(token)
        before = self._tokenizer.decode(self._ids[self._start : self._read], skip_special_tokens=True)
        now = self._tokenizer.decode(self._ids[self._start :], skip_special_tokens=True)
        if last or not now.endswith("\ufffd"):
            self._text += now[len(before) :]
            self._start, self._read = self._read, len(self._ids)
        places = [place for place in (self._text.find(stop, self._told) for stop in self._stop) if place >= 0]
        if places:
            self._text, self.stopped = self._text[: min(places)], True
        held = 0 if last or self.stopped else max((len(stop) - 1 for stop in self._stop), default=0)
        certain = max(self._told, len(self._text) - held)
        piece, self._told = self._text[self._told : certain], certain
        return piece


def half_type(device: str) -> torch.dtype:
    """What stands for half precision: bfloat16, or float32 on a CPU that would take bfloat16 apart in software."""
    on_arm = platform.machine() in ("aarch64", "arm64")
    if device == "cuda" or torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return torch.bfloat16 if on_arm and torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


class Engine:
    """The model, its tokenizer, and the thread that answers. `start` a request; the sequence yields its tokens."""

    def __init__(
        self, folder: str, dtype: str, longest: int | None, most_sequences: int, most_rank: int | None = None
    ) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        half = half_type(self._device)
        dtypes = {"auto": half, "bf16": half, "fp16": torch.float16, "fp32": torch.float32}
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtypes[dtype], local_files_only=True)
        self._model = model.to(self._device).eval()
        config = self._model.config
        self._window = getattr(config, "sliding_window", None)
        can = getattr(config, "max_position_embeddings", None) or sys.maxsize
        self.longest = min(can, longest or can)
        self.most_sequences = most_sequences
        end = self._model.generation_config.eos_token_id
        self._ends = set(end if isinstance(end, list) else [end]) - {None}
        # Without LoRA switched on nothing is added to the model.
        self.adapters = Adapters(self._model, most_rank) if most_rank is not None else None
        self._cache = SlotCache(config.num_hidden_layers)
        self._waiting: queue.SimpleQueue[Sequence] = queue.SimpleQueue()
        self._active: list[Sequence] = []  # their place is their row of the cache
        threading.Thread(target=self._run, name="engine", daemon=True).start()

    # ------------------------------------------------------------------ from the request's thread

    def start(self, request: Generation, adapter: str | None = None) -> Sequence:
        """Put a request in the queue. Raises BadRequest and Overloaded."""
        if adapter is not None and (self.adapters is None or adapter not in self.adapters):
            known = ", ".join(self.adapters.names()) if self.adapters else "none: OPTION_ENABLE_LORA is not true"
            raise BadRequest(f"LoRA adapter {adapter} not found in registry. Available adapters: {known}", code=424)
        prompt = self._encode(request)
        if not prompt:
            raise BadRequest("'inputs' has no tokens; it holds the prompt")
        if len(prompt) >= self.longest:
            raise BadRequest(
                f"the prompt has {len(prompt)} tokens, and prompt and answer together may have {self.longest}; "
                "shorten the prompt"
            )
        room = self.longest - len(prompt)
        limit = room if request.max_new_tokens is None else min(room, request.max_new_tokens)
        generator = None
        if not request.greedy:
            generator = torch.Generator(self._device)
            if request.seed is None:
                generator.seed()
            else:
                generator.manual_seed(request.seed)
        if self._waiting.qsize() >= MOST_WAITING:
            raise Overloaded(f"{MOST_WAITING} requests are waiting; try again later")
        sequence = Sequence(request, prompt, limit, generator, TextSoFar(self.tokenizer, request.stop), adapter)
        self._waiting.put(sequence)
        return sequence

    def _encode(self, request: Generation) -> list[int]:
        if not request.is_chat:
            return list(self.tokenizer(request.prompt)["input_ids"])
        if not self.tokenizer.chat_template:
            raise BadRequest(
                "'messages' cannot be rendered: the model's tokenizer has no chat template; use {\"inputs\": ...}"
            )
        try:
            text = self.tokenizer.apply_chat_template(
                [dict(message) for message in request.messages], add_generation_prompt=True, tokenize=False
            )
        except Exception as error:  # templates refuse orders of roles in their own words
            raise BadRequest(f"'messages' cannot be rendered by the model's chat template: {error}") from None
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    # ------------------------------------------------------------------ the engine's thread

    def _run(self) -> None:
        while True:
            try:
                self._step()
            except Exception as error:  # those who are being answered hear of it; the next ones are answered again
                print(f"engine: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                for sequence in self._active:
                    sequence.tokens.put(error)
                self._active = []
                self._cache.release()

    @torch.inference_mode()
    def _step(self) -> None:
        for row in reversed([row for row, sequence in enumerate(self._active) if sequence.cancelled]):
            self._remove(row)
        joining = self._joining()
        if joining:
            self._prefill(joining)
        if self._active:
            self._decode()

    def _joining(self) -> list[Sequence]:
        """Waiting requests that join now: as many as there is room for, without holding up the others for long."""
        joining: list[Sequence] = []
        tokens = 0
        while len(self._active) + len(joining) < self.most_sequences:
            if self._active or joining:
                if self._waiting.empty():
                    break
            elif self._waiting.empty() and self._cache.size[1] > KEEP_TOKENS:
                self._cache.release()
            sequence = self._waiting.get()
            if sequence.cancelled:
                continue
            joining.append(sequence)
            tokens += len(sequence.prompt)
            if tokens >= MOST_PREFILL_TOKENS:
                break
        return joining

    def _prefill(self, joining: list[Sequence]) -> None:
        first, lengths = len(self._active), [len(sequence.prompt) for sequence in joining]
        self._active += joining
        longest = max(lengths)
        self._cache.reserve(min(self.most_sequences, max(4, 2 * len(self._active))), longest + 1)
        ids = torch.zeros(len(joining), longest, dtype=torch.long)
        for row, sequence in enumerate(joining):
            ids[row, : lengths[row]] = torch.tensor(sequence.prompt)
        # What follows a shorter prompt is never attended to: causality keeps it from the prompt, and each answer's
        # tokens take its place before they are looked at.
        self._cache.access = Access(slice(first, len(self._active)))
        self._name_adapters(joining)
        ends = sorted(set(lengths))
        output = self._model(
            input_ids=ids.to(self._device),
            position_ids=torch.arange(longest, device=self._device).expand(len(joining), -1),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=torch.tensor([end - 1 for end in ends], device=self._device),
        )
        every = torch.arange(len(joining), device=self._device)
        places = torch.tensor([ends.index(length) for length in lengths], device=self._device)
        self._take(output.logits[every, places], first)

    def _decode(self) -> None:
        lengths = [sequence.length for sequence in self._active]  # the last token is not in the cache yet
        reach = max(lengths)
        self._cache.reserve(len(self._active), reach)
        self._name_adapters(self._active)
        positions = torch.tensor(lengths, device=self._device) - 1
        self._cache.access = Access(slice(0, len(self._active)), positions, reach)
        mask = None
        if min(lengths) < reach or (self._window and reach > self._window):
            places = torch.arange(reach, device=self._device)
            mask = places <= positions[:, None]
            if self._window:
                mask &= places > positions[:, None] - self._window
            mask = mask[:, None, None, :]
        ids = torch.tensor([[sequence.ids[-1]] for sequence in self._active], device=self._device)
        output = self._model(
            input_ids=ids,
            position_ids=positions[:, None],
            attention_mask=mask,
            past_key_values=self._cache,
            use_cache=True,
        )
        self._take(output.logits[:, -1], 0)

    def _name_adapters(self, sequences: list[Sequence]) -> None:
        if self.adapters is not None:
            self.adapters.rows = [sequence.adapter for sequence in sequences]

    def _take(self, logits: torch.Tensor, first: int) -> None:
        """Choose a token for each of the sequences from `first` on, from logits of shape [sequences, vocabulary]."""
        logits = logits.float()
        sequences = self._active[first:]
        likeliest = logits.argmax(dim=-1).tolist()
        wants_probabilities = any(sequence.request.stream or sequence.request.details for sequence in sequences)
        normalizer = logits.logsumexp(dim=-1).tolist() if wants_probabilities else [0.0] * len(sequences)
        done = []
        for row, sequence in enumerate(sequences):
            request = sequence.request
            token = likeliest[row]
            if not request.greedy or request.repetition_penalty != 1:
                token = _choose(logits[row], sequence)
            sequence.ids.append(token)
            ended = token in self._ends
            last = ended or len(sequence.ids) >= sequence.limit
            piece = sequence.text.add(token, last)
            reason = None
            if sequence.text.stopped:
                reason = "stop_sequence"
            elif last:
                reason = "eos_token" if ended else "length"
            probability = float(logits[row, token]) - normalizer[row] if wants_probabilities else None
            sequence.tokens.put(Token(token, piece, probability, reason))
            if reason is not None:
                done.append(first + row)
        for row in reversed(done):
            self._remove(row)

    def _remove(self, row: int) -> None:
        """The last sequence takes the place of one that is done."""
        last = self._active.pop()
        if row < len(self._active):
            self._cache.move(len(self._active), row, last.length)
            self._active[row] = last


def _choose(logits: torch.Tensor, sequence: Sequence) -> int:
    """One token from logits of shape [vocabulary], by the request's parameters and its own random numbers."""
    request = sequence.request
    if request.repetition_penalty != 1:
        logits = logits.clone()
        seen = torch.tensor(sorted({*sequence.prompt, *sequence.ids}), device=logits.device)
        scores = logits[seen]
        logits[seen] = torch.where(scores > 0, scores / request.repetition_penalty, scores * request.repetition_penalty)
    if request.greedy:
        return int(logits.argmax())
    logits = logits / request.temperature
    if request.top_k != -1 and request.top_k < len(logits):
        least = logits.topk(request.top_k).values[-1]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if request.top_p < 1:
        ordered, places = logits.sort(descending=True)
        shares = ordered.softmax(dim=-1)
        beyond = shares.cumsum(dim=-1) - shares > request.top_p  # the likeliest token is always kept
        logits = logits.masked_fill(torch.zeros_like(logits, dtype=torch.bool).scatter(0, places, beyond), -torch.inf)
    return int(torch.multinomial(logits.softmax(dim=-1), 1, generator=sequence.generator))
