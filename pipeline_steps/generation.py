"""Answers to many prompts: continuous batching over a fixed set of slots, for any causal model of transformers.

Each slot holds one sequence at its own position. When sequences end, their slots are filled with the next prompts, so
that no step is spent on padding or on waiting for the longest answer of a batch. On a GPU a step is a CUDA graph,
captured once for each number of slots: without it the host is the bottleneck.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

CPU_SLOTS = 16
GPU_SLOTS = 128
GPU_MEMORY_SHARE = 0.5  # of what is free, for the slots' keys and values; reading prompts and losses take the rest
REFILL_SHARE = (
    8  # slots / this many are free before prompts are read: reading a few together costs little more than one
)
GRANULE = 32  # lengths are rounded up to this many tokens
PROMPT_TOKENS = {"cpu": 1024, "cuda": 16384}  # that are read together, padding included


@dataclass(frozen=True)
class Answer:
    """`ids` without the end-of-sequence token; `ended`: the model wrote that token within the limit."""

    ids: list[int]
    ended: bool


@dataclass
class _Sequence:
    place: int  # in the caller's order
    prompt: Sequence[int]
    most: int  # tokens that it may write
    written: list[int] = field(default_factory=list)
    answer: Answer | None = None  # when it is complete


class Generator:
    """Generates with one model; its weights may be replaced in place between calls."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device = model.device
        self.steps: dict[int, Any] = {}  # CUDA graphs by number of slots
        self.slots: _Slots | None = None
        self.asked = 0  # slots that were wanted; memory may have given fewer
        if self.device.type == "cuda":
            from pipeline_steps import slot_attention

            model.set_attn_implementation(slot_attention.NAME)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int | Sequence[int],
        end: int,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        on_progress: Callable[[int, float], None] = lambda done, seconds_left: None,
    ) -> list[Answer]:
        """The answer to each prompt (token ids), in the order of `prompts`; greedy where `temperature` is 0.

        `top_k` (0: all) and `top_p` (1: all) leave only the likeliest tokens to be drawn, as in transformers.
        `max_new_tokens` is for all answers, or one for each. `end` is the end-of-sequence token. `on_progress` hears how
        many answers are done and the seconds left.
        """
        import torch

        answers: list[Any] = [None] * len(prompts)
        # Longest first: the slots that are still at work at the end are those with the least to attend to.
        order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place]))
        limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
        waiting = [_Sequence(place, prompts[place], limits[place]) for place in reversed(order)]
        running: list[_Sequence] = []
        started, done = time.monotonic(), 0
        random = torch.Generator(self.device).manual_seed(seed)

        def choose(logits: "Tensor") -> list[int]:
            if not temperature:
                return logits.argmax(-1).tolist()  # type: ignore[no-any-return]
            shares = torch.softmax(_likely(logits.float() / temperature, top_k, top_p), -1)
            return torch.multinomial(shares, 1, generator=random)[:, 0].tolist()  # type: ignore[no-any-return]

        def note(sequences: Sequence[_Sequence], tokens: Sequence[int]) -> None:
            for sequence, token in zip(sequences, tokens, strict=True):
                if token != end:
                    sequence.written.append(token)
                if token == end or len(sequence.written) == sequence.most:
                    answers[sequence.place] = sequence.answer = Answer(sequence.written, ended=token == end)

        with torch.inference_mode():
            longest = max((len(prompt) for prompt in prompts), default=0)
            slots = self._slots(len(prompts), longest + max(limits, default=0))
            while waiting or running:
                free = slots.number - len(running)
                if waiting and (free >= max(1, slots.number // REFILL_SHARE) or not running):
                    new = _take(waiting, free, PROMPT_TOKENS[self.device.type])
                    note(new, choose(self._read(new, slots, len(running))))
                    running += new
                else:
                    note(running, choose(self._step(running, slots)))
                ended = [place for place, sequence in enumerate(running) if sequence.answer]
                for place in reversed(ended):
                    # The last running sequence takes the free slot, so that the running ones stay in front.
                    last = running.pop()
                    if place < len(running):
                        slots.move(len(running), place, len(last.prompt) + len(last.written))
                        running[place] = last
                if ended:
                    done += len(ended)
                    seconds = time.monotonic() - started
                    on_progress(done, seconds / done * (len(prompts) - done))
        return answers

    def _slots(self, sequences: int, length: int) -> "_Slots":
        """Slots for so many sequences of at most `length` tokens; those of the last call if they will do."""
        import torch

        length = -(-length // GRANULE) * GRANULE
        number = min(sequences, GPU_SLOTS if self.device.type == "cuda" else CPU_SLOTS)
        if self.slots is None or self.asked < number or self.slots.length < length:
            self.slots, self.steps, self.asked = None, {}, number
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
                free, _ = torch.cuda.mem_get_info(self.device)
                number = max(1, min(number, int(GPU_MEMORY_SHARE * free / _Slots.bytes_of_one(self.model, length))))
            self.slots = _Slots(self.model, number, length)
        return self.slots

    def _read(self, new: Sequence[_Sequence], slots: "_Slots", first: int) -> "Tensor":
        """Read prompts into the slots from `first`; returns the logits of each one's next token, (prompts, vocabulary)."""
        import torch

        longest = max(len(sequence.prompt) for sequence in new)
        ids = torch.zeros(len(new), longest, dtype=torch.long)
        for row, sequence in enumerate(new):
            ids[row, : len(sequence.prompt)] = torch.tensor(sequence.prompt)
        places = torch.arange(longest, device=self.device)
        mask = _visible(places[:, None], places, self.model.config)[None, None].expand(len(new), 1, -1, -1)
        slots.read_into(first)
        hidden = self.model.base_model(
            input_ids=ids.to(self.device),
            position_ids=places.expand(len(new), -1),
            attention_mask=mask,
            past_key_values=slots,
            use_cache=True,
        ).last_hidden_state
        last = torch.tensor([len(sequence.prompt) - 1 for sequence in new], device=self.device)
        return self._logits(hidden[torch.arange(len(new), device=self.device), last])

    def _step(self, running: Sequence[_Sequence], slots: "_Slots") -> "Tensor":
        """One token further in every running slot; returns the next logits, (running, vocabulary)."""
        import torch

        tokens = [sequence.written[-1] for sequence in running]
        positions = [len(sequence.prompt) + len(sequence.written) - 1 for sequence in running]
        number = len(running)
        slots.tokens[:number] = torch.tensor(tokens)
        slots.positions[:number] = torch.tensor(positions)
        if self.device.type != "cuda":
            seen = -(-(max(positions) + 1) // GRANULE) * GRANULE
            places = torch.arange(seen, device=self.device)
            mask = _visible(slots.positions[:number, None], places, self.model.config)[:, None, None]
            return self._forward(slots, number, seen, mask)
        number = min(slots.number, max(8, 1 << (number - 1).bit_length()))  # few graphs: powers of two
        if number not in self.steps:
            self.steps[number] = self._capture(slots, number)
        graph, logits = self.steps[number]
        graph.replay()
        return logits[: len(running)]

    def _capture(self, slots: "_Slots", number: int) -> Any:
        import torch

        def forward() -> "Tensor":
            return self._forward(slots, number, slots.length, slots.positions[:number, None, None, None])

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries make their workspaces before the graph is recorded
            forward()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self.steps.values()))[0].pool() if self.steps else None
        with torch.cuda.graph(graph, pool=pool):
            logits = forward()
        return graph, logits

    def _forward(self, slots: "_Slots", number: int, seen: int, mask: "Tensor") -> "Tensor":
        slots.write_one(number, seen)
        hidden = self.model.base_model(
            input_ids=slots.tokens[:number, None],
            position_ids=slots.positions[:number, None],
            attention_mask=mask,
            past_key_values=slots,
            use_cache=True,
        ).last_hidden_state
        return self._logits(hidden[:, -1])

    def _logits(self, hidden: "Tensor") -> "Tensor":
        return self.model.get_output_embeddings()(hidden)


class _Slots:
    """Keys and values of each layer, (slots, heads, length, head size): what transformers calls a cache.

    A layer calls `update` with what it has just computed and gets what its queries attend to.
    """

    def __init__(self, model: Any, number: int, length: int) -> None:
        import torch

        self.number, self.length = number, length
        layers, heads, size = _shape(model.config)
        shape = (number, heads, length, size)
        self.keys, self.values = (
            [torch.zeros(shape, dtype=model.dtype, device=model.device) for _ in range(layers)] for _ in range(2)
        )
        self.tokens = torch.zeros(number, dtype=torch.long, device=model.device)
        self.positions = torch.zeros(number, dtype=torch.long, device=model.device)
        self.rows = torch.arange(number, device=model.device)
        self.first = self.used = self.seen = 0

    @staticmethod
    def bytes_of_one(model: Any, length: int) -> int:
        layers, heads, size = _shape(model.config)
        return 2 * layers * heads * size * length * int(model.dtype.itemsize)

    def read_into(self, first: int) -> None:
        """The next forward reads prompts into the slots from `first`."""
        self.first, self.used = first, 0

    def write_one(self, used: int, seen: int) -> None:
        """The next forward writes one token in each of the first `used` slots and attends to `seen` places."""
        self.used, self.seen = used, seen

    def update(self, keys: "Tensor", values: "Tensor", layer: int, *_: Any, **__: Any) -> "tuple[Tensor, Tensor]":
        if not self.used:
            place = (slice(self.first, self.first + len(keys)), slice(None), slice(keys.shape[2]))
            self.keys[layer][place], self.values[layer][place] = keys, values
            return keys, values
        rows, positions = self.rows[: self.used], self.positions[: self.used]
        self.keys[layer][rows, :, positions] = keys[:, :, 0]
        self.values[layer][rows, :, positions] = values[:, :, 0]
        return self.keys[layer][: self.used, :, : self.seen], self.values[layer][: self.used, :, : self.seen]

    def get_seq_length(self, layer: int = 0) -> int:
        return 0  # positions and masks are given, so nobody has to count

    def move(self, source: int, target: int, length: int) -> None:
        for tensors in (self.keys, self.values):
            for tensor in tensors:
                tensor[target, :, :length] = tensor[source, :, :length]


def _likely(scores: "Tensor", top_k: int, top_p: float) -> "Tensor":
    """The scores, (rows, vocabulary), with minus infinity for tokens outside the `top_k` likeliest and the share `top_p`."""
    if top_k and top_k < scores.shape[-1]:
        least = scores.topk(top_k, -1).values[:, -1:]
        scores = scores.masked_fill(scores < least, -float("inf"))
    if top_p < 1:
        ordered, places = scores.sort(-1, descending=True)
        shares = ordered.softmax(-1)
        beyond = shares.cumsum(-1) - shares >= top_p  # what comes before reaches the share already
        scores = scores.masked_fill(beyond.scatter(-1, places, beyond), -float("inf"))
    return scores


def _take(waiting: list[_Sequence], most: int, tokens: int) -> list[_Sequence]:
    """The next sequences that are read together; at least one."""
    longest = len(waiting[-1].prompt)
    number = max(1, min(most, len(waiting), tokens // max(1, longest)))
    return [waiting.pop() for _ in range(number)]


def _visible(queries: "Tensor", keys: "Tensor", config: Any) -> "Tensor":
    """Which keys (by place) each query attends to."""
    visible = keys <= queries
    window = getattr(config, "sliding_window", None)
    if window:
        visible = visible & (keys > queries - window)
    return visible


def _shape(config: Any) -> tuple[int, int, int]:
    """Layers, heads of keys and values, size of a head."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers, heads, size
