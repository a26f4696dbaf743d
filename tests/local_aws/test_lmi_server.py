"""The stand-in for the LMI image: its requests, its answers, its errors, with a tiny random model."""

import json
import os
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_aws.lmi_server import DEFAULT_NEW_TOKENS, PARAMETERS, BadRequest, read_request
from local_aws.serving_process import free_port
from tests.local_aws.sagemaker_server import REPOSITORY, STEPS_ENVIRONMENT

CONTEXT = 128  # tokens of the tiny model, which has one token a byte
MAKE_MODEL = """
import sys, torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

torch.manual_seed(0)
vocabulary = {text: number for number, text in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), "<s>", "</s>", "<pad>"])}
tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>").save_pretrained(sys.argv[1])
sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
ids = dict(bos_token_id=256, eos_token_id=257, pad_token_id=258)
MistralForCausalLM(MistralConfig(vocab_size=259, max_position_embeddings=int(sys.argv[2]), **sizes, **ids)).save_pretrained(sys.argv[1])
"""


class Lmi:
    """A running stand-in."""

    def __init__(self, model: Path, **environment: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        variables = {**os.environ, "HF_MODEL_ID": str(model), "SAGEMAKER_BIND_TO_PORT": str(port), **environment}
        variables["OMP_NUM_THREADS"] = (
            "1"  # threads that wait for each other on a busy machine cost more than they give
        )
        variables.pop("PYTHONPATH", None)
        program = [STEPS_ENVIRONMENT / "bin/python3", REPOSITORY / "local_aws/lmi_server.py"]
        self.process = subprocess.Popen(program, env=variables, cwd="/", stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not self.healthy():
            assert self.process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/ping", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def post(self, body: Any, path: str = "/invocations") -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, data), timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def generate(self, prompt: str = "hello", **parameters: Any) -> Any:
        status, answer = self.post({"inputs": prompt, "parameters": parameters})
        assert status == 200, answer
        return answer


@pytest.fixture(scope="module")
def model() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [STEPS_ENVIRONMENT / "bin/python3", "-c", MAKE_MODEL, folder, str(CONTEXT)], check=True, capture_output=True
        )
        yield Path(folder)


@pytest.fixture(scope="module")
def lmi(model: Path) -> Iterator[Lmi]:
    server = Lmi(model)
    yield server
    server.process.kill()
    server.process.wait()


# ---------------------------------------------------------------------- a running server


def test_an_answer_is_generated_text_of_thirty_tokens_by_default(lmi: Lmi) -> None:
    answer = lmi.generate(details=True)
    assert isinstance(answer["generated_text"], str)
    assert 1 <= answer["details"]["generated_tokens"] <= DEFAULT_NEW_TOKENS


def test_without_sampling_the_answer_is_always_the_same(lmi: Lmi) -> None:
    assert lmi.generate(max_new_tokens=12) == lmi.generate(max_new_tokens=12, do_sample=False)
    assert lmi.generate(max_new_tokens=12) == lmi.generate(max_new_tokens=12, temperature=0)


def test_a_seed_fixes_a_sampled_answer(lmi: Lmi) -> None:
    answers = [lmi.generate(do_sample=True, temperature=3.0, seed=seed)["generated_text"] for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]


def test_the_full_text_starts_with_the_prompt(lmi: Lmi) -> None:
    alone = lmi.generate(max_new_tokens=5)["generated_text"]
    assert lmi.generate(max_new_tokens=5, return_full_text=True)["generated_text"] == f"hello{alone}"


def test_the_answer_ends_before_a_stop_text(lmi: Lmi) -> None:
    alone = lmi.generate(max_new_tokens=20, seed=5, temperature=2.0)["generated_text"]
    readable = [character for character in alone if character.isascii() and character.isalnum()]
    assert readable, "choose another seed"
    stopped = lmi.generate(max_new_tokens=20, seed=5, temperature=2.0, stop=[readable[-1]])["generated_text"]
    assert stopped == alone[: alone.index(readable[-1])]


def test_a_prompt_that_is_too_long_is_refused_with_the_lengths_and_the_server_goes_on(lmi: Lmi) -> None:
    status, answer = lmi.post({"inputs": "a" * 200})
    assert (status, answer["code"]) == (400, 400)
    assert "200 tokens" in answer["error"]
    assert str(CONTEXT) in answer["error"]
    assert lmi.generate(max_new_tokens=2)


def test_an_answer_ends_where_the_models_length_ends(lmi: Lmi) -> None:
    answer = lmi.generate("a" * (CONTEXT - 3), max_new_tokens=50, details=True)
    assert answer["details"]["generated_tokens"] <= 3


def test_requests_at_the_same_time_get_their_own_answers(lmi: Lmi) -> None:
    prompts = ["one", "two", "three", "four"]
    alone = [lmi.generate(prompt, max_new_tokens=8) for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda prompt: lmi.generate(prompt, max_new_tokens=8), prompts)) == alone


@pytest.mark.parametrize("body", [b"{", b"[1]", b"{}", {"inputs": 5}, {"inputs": "a", "parameters": {"nope": 1}}])
def test_a_wrong_request_gets_400_and_the_server_goes_on(lmi: Lmi, body: Any) -> None:
    status, answer = lmi.post(body)
    assert status == 400
    assert answer["error"]
    assert lmi.healthy()


def test_another_path_is_404(lmi: Lmi) -> None:
    assert lmi.post({"inputs": "a"}, path="/generate")[0] == 404


def test_tgi_compatible_answers_are_a_list(model: Path) -> None:
    server = Lmi(model, OPTION_TGI_COMPAT="true", OPTION_MAX_MODEL_LEN="16")
    try:
        (answer,) = server.generate(max_new_tokens=2)
        assert set(answer) == {"generated_text"}
        assert "may have 16" in server.post({"inputs": "a" * 20})[1]["error"]
    finally:
        server.process.kill()
        server.process.wait()


# ---------------------------------------------------------------------- requests alone


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"max_new_token": 5}, "unknown parameter 'max_new_token'; the parameters are .*max_new_tokens"),
        ({"max_new_tokens": 0}, "'max_new_tokens' is 0, and must be a whole number from 1"),
        ({"max_new_tokens": 2.5}, "must be a whole number"),
        ({"max_new_tokens": True}, "'max_new_tokens' is true"),
        ({"temperature": -1}, "'temperature' is -1, and must be a number from 0"),
        ({"top_p": 1.5}, "'top_p' is 1.5, and must be a number above 0, up to 1"),
        ({"top_k": 0}, "or -1 for all"),
        ({"stop": [""]}, "none empty"),
        ({"seed": -1}, "'seed' is -1"),
        ({"repetition_penalty": 0}, "above 0"),
        ({"do_sample": "yes"}, "true or false"),
    ],
)
def test_a_wrong_parameter_is_named_with_what_is_allowed(parameters: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        read_request(json.dumps({"inputs": "a", "parameters": parameters}).encode())


def test_all_problems_come_at_once() -> None:
    with pytest.raises(BadRequest) as caught:
        read_request(b'{"input": "a", "parameters": {"x": 1, "top_p": 7}}')
    for words in ("unknown field 'input'", "'inputs' is missing", "unknown parameter 'x'", "'top_p' is 7"):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("parameters", "greedy"),
    [
        ({}, True),
        ({"do_sample": True}, False),
        ({"temperature": 0.7}, False),
        ({"temperature": 0, "do_sample": True}, True),
        ({"top_p": 0.9, "do_sample": False}, True),
    ],
)
def test_sampling_is_on_when_it_is_asked_for(parameters: dict[str, Any], greedy: bool) -> None:
    assert read_request(json.dumps({"inputs": "a", "parameters": parameters}).encode()).greedy is greedy


@given(
    st.dictionaries(
        st.sampled_from(sorted(PARAMETERS)), st.none() | st.booleans() | st.integers() | st.floats() | st.text()
    )
)
def test_any_parameters_are_read_or_refused_by_name(parameters: dict[str, Any]) -> None:
    try:
        read_request(json.dumps({"inputs": "a", "parameters": parameters}).encode())
    except BadRequest as error:
        assert any(f"'{name}'" in str(error) for name in parameters)
