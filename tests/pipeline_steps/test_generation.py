"""Continuous batching writes what transformers writes for each prompt alone, however slots are shared."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline_steps import generation
from pipeline_steps.generation import Answer, Generator

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model(folder: Path, device: str, window: int | None = None) -> Any:
    """In float32: alone and in company, products are then the same to far more digits than decide between two tokens."""
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    loaded.config.sliding_window = window
    torch.manual_seed(3)
    with torch.no_grad():  # a random model repeats itself; larger weights make it wander
        for weight in loaded.parameters():
            weight.mul_(2.5)
    return loaded.to(device).eval()


def prompts(number: int) -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(4, 260, int(random.integers(1, 60))).tolist() for _ in range(number)]


def alone(model: Any, prompt: list[int], limit: int, end: int) -> Answer:
    ids = torch.tensor([prompt], device=model.device)
    output = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, do_sample=False, eos_token_id=end,
        pad_token_id=0,
    )[0, len(prompt) :].tolist()  # fmt: skip
    ended = output[-1] == end
    return Answer(output[:-1] if ended else output, ended)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("slots", [1, 3, 16])
def test_answers_are_those_of_each_prompt_alone(
    base_model: Path, device: str, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "CPU_SLOTS", slots)
    monkeypatch.setattr(generation, "GPU_SLOTS", slots)
    asked, lent = prompts(13), model(base_model, device)
    end = alone(lent, asked[0], 12, -1).ids[5]  # some answers end with it, others never do
    expected = [alone(lent, prompt, 12, end) for prompt in asked]
    assert 0 < sum(one.ended for one in expected) < len(expected)
    generator = Generator(lent)
    assert generator.generate(asked, 12, end) == expected
    assert generator.generate(asked, 12, end) == expected  # what the slots held before does not matter


def test_a_sliding_window_hides_what_is_farther_away(base_model: Path) -> None:
    asked, narrow = prompts(5), model(base_model, "cpu", window=8)
    expected = [alone(narrow, prompt, 12, -1) for prompt in asked]
    assert Generator(narrow).generate(asked, 12, -1) == expected
    assert Generator(model(base_model, "cpu")).generate(asked, 12, -1) != expected


def test_each_answer_has_its_own_limit_and_progress_ends_with_all_of_them(base_model: Path) -> None:
    heard: list[tuple[int, float]] = []
    limits = [1, 5, 2, 9]
    answers = Generator(model(base_model, "cpu")).generate(
        prompts(4), limits, -1, on_progress=lambda done, left: heard.append((done, left))
    )
    assert [len(answer.ids) for answer in answers] == limits
    assert [done for done, _ in heard] == sorted(done for done, _ in heard) and heard[-1] == (4, 0.0)


def test_no_prompts_are_no_answers(base_model: Path) -> None:
    assert Generator(model(base_model, "cpu")).generate([], 5, -1) == []


def test_weights_replaced_in_place_are_those_that_answer(base_model: Path) -> None:
    lent, asked = model(base_model, "cpu"), prompts(4)
    generator = Generator(lent)
    before = generator.generate(asked, 8, -1)
    with torch.no_grad():
        for weight in lent.parameters():
            weight.mul_(0.7)
    after = generator.generate(asked, 8, -1)
    assert after != before and after == Generator(lent).generate(asked, 8, -1)
