"""Rows for instruction tuning that no one wrote: JSON lines with instruction, context and response, always the same.

Words follow the two-regime Zipf law that Gerlach and Altmann ("Stochastic Model for the Vocabulary Growth in Natural
Languages", 2013) fitted to English: p(rank) ~ 1/rank up to rank 7,873, then rank^-1.77, without an end. So new words
keep coming as they do in natural text, and a cache of words gets no more from these rows than from written ones. The
frequent words are those of this repository's examples; the rare ones are made, letter by letter.
"""

import hashlib
import json
import math
import multiprocessing
import os
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np

import pipeline_steps

ROOT = Path(pipeline_steps.__file__).parents[1]
TEXTS = ("examples/instruction/train/*.jsonl", "examples/domain/train/*.txt")
SEED = 20261124
CHUNK_ROWS = 1000  # each chunk has its own random numbers: any core can make it, and 15,000 rows begin 120,000

HEAD_RANKS, TAIL_EXPONENT = 7873, 1.77
EULER = 0.5772
MADE_WORDS = 2**18  # ranks beyond are two of these words in one
NAME_EVERY = 9  # of the rarer words, those that are names: always capitalised
FREQUENT = 1000
LONGEST_MADE = 10  # letters

# Words in a row: lognormal, so that a row has 522 tokens on average after the template (measured) and 1 in 100 is
# longer than 2,048.
MEDIAN_WORDS, SIGMA, FEWEST, MOST = 200, 0.68, 12, 1600
CODE_SHARE, ACCENT_SHARE, CJK_SHARE = 0.04, 0.03, 0.01
CONTEXT_SHARE = 0.5
ACCENTS = str.maketrans({"a": "à", "e": "é", "i": "î", "o": "ö", "u": "ü", "n": "ñ", "c": "ç"})


def digest() -> str:
    """Of everything that the rows depend on: this file and the texts that the words are from."""
    return hashlib.sha256(Path(__file__).read_bytes() + _texts().encode()).hexdigest()[:12]


def write(path: Path, rows: int) -> None:
    """`rows` rows, on all cores. The file is there only when it is whole."""
    chunks = [(start // CHUNK_ROWS, min(CHUNK_ROWS, rows - start)) for start in range(0, rows, CHUNK_ROWS)]
    unfinished = path.with_suffix(".unfinished")
    cores = len(os.sched_getaffinity(0))
    with (
        ProcessPoolExecutor(cores, multiprocessing.get_context("spawn")) as pool,
        unfinished.open("w", encoding="utf-8") as file,
    ):
        for text in pool.map(_chunk, chunks):
            file.write(text)
    unfinished.rename(path)


def _chunk(numbered: tuple[int, int]) -> str:
    number, rows = numbered
    chance = np.random.default_rng([SEED, number])
    lengths = np.exp(math.log(MEDIAN_WORDS) + SIGMA * chance.standard_normal(CHUNK_ROWS))
    return "".join(
        json.dumps(_row(int(length), chance), ensure_ascii=False) + "\n"
        for length in np.clip(lengths, FEWEST, MOST)[:rows]
    )


def _row(words: int, chance: np.random.Generator) -> dict[str, str]:
    instruction = max(4, min(words // 6, 60))
    context = words // 3 if chance.random() < CONTEXT_SHARE else 0
    kind = chance.random()
    if kind < CODE_SHARE:
        body = _code
    elif kind < CODE_SHARE + ACCENT_SHARE:
        body = _accented
    elif kind < CODE_SHARE + ACCENT_SHARE + CJK_SHARE:
        body = _cjk
    else:
        body = _prose
    return {
        "instruction": _prose(instruction, chance),
        "context": body(context, chance) if context else "",
        "response": body(words - instruction - context, chance),
    }


def _prose(count: int, chance: np.random.Generator) -> str:
    """Sentences of about 17 words with what is written between words: commas, numbers, quotes, paragraphs."""
    words = _draw(count, chance)
    words[0] = _capitalised(words[0])
    for position, kind in enumerate(chance.random(count).tolist()):
        if kind > 0.15:
            continue
        word = words[position]
        if kind < 0.055:  # the sentence ends
            words[position] = word + next(end for below, end in ENDS if kind < below)
            if position + 1 < count:
                words[position + 1] = _capitalised(words[position + 1])
        elif kind < 0.110:
            words[position] = word + ","
        elif kind < 0.130:
            words[position] = _number(chance)
        elif kind < 0.146:
            form = int(chance.integers(len(AROUND)))
            words[position] = AROUND[form].format(word)
        elif kind < 0.149:
            words[position] = f"{word}'s"
        else:
            second, third = _draw(2, chance)
            form = int(chance.integers(len(ODDITIES)))
            words[position] = ODDITIES[form].format(word, second, third, int(chance.integers(10_000)))
    if words[-1][-1] not in ".?!\n ":
        words[-1] += "."
    return " ".join(words).replace("\n ", "\n").replace("\n-  ", "\n- ").strip()


ENDS = ((0.003, "?"), (0.005, "!"), (0.014, ".\n\n"), (0.016, ".\n- "), (1.0, "."))
AROUND = ('"{}"', "({})", "{};", "{}:", "*{}*", "`{}`", "{}…", "{} \N{EN DASH}")
ODDITIES = (
    "https://www.{}.org/{}/{}?id={}",
    "{}.{}@{}.com",
    "🙂 {}",
    "{}_{}",
    "#{}{}",
    "{}/{}",
    "{}™ 漢字",
    "{}-{}-{}",
)


def _accented(count: int, chance: np.random.Generator) -> str:
    """Prose in which every other word has accents."""
    words = _prose(count, chance).split(" ")
    return " ".join(word.translate(ACCENTS) if len(word) % 2 else word for word in words)


def _cjk(count: int, chance: np.random.Generator) -> str:
    """Characters without spaces between them, in sentences."""
    ranks = _ranks(count * 2 // 3 + 1, chance)
    characters = [chr(0x4E00 + min(rank, 5000) * 4) for rank in ranks]  # spread over the block
    for position, kind in enumerate(chance.random(len(characters)).tolist()):
        if kind < 0.10:
            characters[position] += "。" if kind < 0.04 else "、" if kind < 0.09 else "。\n"
    return "".join(characters).strip() or "是"


def _code(count: int, chance: np.random.Generator) -> str:
    """Lines of something like Python, four words each."""
    lines = []
    for start in range(0, count, 4):
        first, second, third, fourth = _draw(4, chance)
        form = LINES[int(chance.integers(len(LINES)))]
        lines.append(form.format(first, second, third, fourth, int(chance.integers(200))))
        if start % 40 == 36:
            lines.append("")
    return "```python\n" + "\n".join(lines) + "\n```"


LINES = (
    "def {0}_{1}({2}: int, {3}: str = '') -> None:",
    "    {0} = {1}.{2}({3}, {4})",
    "    if {0} != {1}[{4}] and not {2}:",
    '        return {{"{0}": {1}_{2}, "{3}": {4}.5}}',
    "    # {0} {1} {2} {3}",
    "\tfor {0} in range({4}):",
    "        self.{0}.append({1} + {4} * {2})",
)


def _number(chance: np.random.Generator) -> str:
    form, value = int(chance.integers(6)), int(np.exp(chance.random() * 14))
    if form == 0:
        return str(1900 + value % 140)
    if form == 1:
        return f"{value:,}"
    if form == 2:
        return f"{value % 1000 / 10}"
    if form == 3:
        return f"{value % 24:02}:{value % 60:02}"
    return f"${value}.{value % 100:02}" if form == 4 else str(value)


def _capitalised(word: str) -> str:
    return word[:1].upper() + word[1:]


# ---------------------------------------------------------------- words


def _ranks(count: int, chance: np.random.Generator) -> list[int]:
    """Ranks from 1, by the inverse of the continuous distribution, which begins where rank 1 gets its 1/1."""
    begin, tail = math.exp(-EULER), TAIL_EXPONENT - 1
    head = math.log(HEAD_RANKS / begin)
    mass = chance.random(count) * (head + 1 / tail)
    beyond = np.clip(1 - (mass - head) * tail, 1e-9, 1.0)
    ranks = np.rint(np.where(mass < head, begin * np.exp(mass), HEAD_RANKS * beyond ** (-1 / tail)))
    return [int(rank) for rank in ranks.tolist()]


def _draw(count: int, chance: np.random.Generator) -> list[str]:
    words = _words()
    drawn = []
    for rank in _ranks(count, chance):
        if rank <= MADE_WORDS:
            drawn.append(words[rank - 1])
        else:
            first, second = divmod(rank, MADE_WORDS)
            drawn.append(words[FREQUENT + first % (MADE_WORDS - FREQUENT)] + words[second].lower())
    return drawn


def _texts() -> str:
    paths = [path for pattern in TEXTS for path in sorted(ROOT.glob(pattern))]
    text = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    return re.sub(r'"(instruction|context|response)": |\\\\[nt]', " ", text)


@cache
def _words() -> list[str]:
    """MADE_WORDS words, the most frequent first; all different."""
    counts = Counter(word.lower() for word in re.findall(r"[^\W\d_]+(?:['-][^\W\d_]+)*", _texts()))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    known = set(ranked)
    after = _letters_after(ranked)
    chance = random.Random(SEED)
    while len(ranked) < MADE_WORDS:
        word = _made_word(after, chance)
        if len(word) > 3 and word not in known:
            known.add(word)
            ranked.append(word)
    return [
        _capitalised(word) if number > FREQUENT and number % NAME_EVERY == 0 else word
        for number, word in enumerate(ranked)
    ]


def _made_word(after: dict[str, str], chance: random.Random) -> str:
    word = "^^"
    while len(word) < LONGEST_MADE + 2:
        choices = after[word[-2:]]
        letter = choices[int(chance.random() * len(choices))]
        if letter == "$":
            break
        word += letter
    return word[2:]


def _letters_after(words: Iterable[str]) -> dict[str, str]:
    """What follows two letters, as often as it does in `words`; ^ begins a word, $ ends it."""
    after: defaultdict[str, list[str]] = defaultdict(list)
    for word in words:
        spelled = f"^^{word}$"
        for position in range(len(spelled) - 2):
            after[spelled[position : position + 2]].append(spelled[position + 2])
    return {pair: "".join(letters) for pair, letters in after.items()}
