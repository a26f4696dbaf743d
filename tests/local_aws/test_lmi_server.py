"""The stand-in for the LMI image: its requests, its answers, its errors, with a tiny random model."""

import http.client
import json
import os
import shutil
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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from local_aws.lmi.payloads import CHAT_FIELDS, DEFAULT_NEW_TOKENS, PARAMETERS, BadRequest, read_json, read_request
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
fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
fast.chat_template = (
    "{% for m in messages %}"
    "{% if m.role == 'system' and not loop.first %}{{ raise_exception('system comes first') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{% endfor %}>"
)
fast.save_pretrained(sys.argv[1])
sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
ids = dict(bos_token_id=256, eos_token_id=257, pad_token_id=258)
MistralForCausalLM(MistralConfig(vocab_size=259, max_position_embeddings=int(sys.argv[2]), **sizes, **ids)).save_pretrained(sys.argv[1])
"""

FORMATTER = """
from djl_python.input_parser import input_formatter

@input_formatter
def render(decoded_payload, tokenizer=None, **kwargs):
    if isinstance(decoded_payload.get("inputs"), dict):
        decoded_payload["inputs"] = "Q: " + decoded_payload["inputs"]["question"] + " A:"
    return decoded_payload
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
        variables["PYTHONPATH"] = str(REPOSITORY)
        program = [str(STEPS_ENVIRONMENT / "bin/python3"), "-m", "local_aws.lmi"]
        self.process = subprocess.Popen(program, env=variables, cwd="/", stdout=subprocess.DEVNULL)
        self.first_ping: int | None = None
        deadline = time.monotonic() + 60
        while not self.healthy():
            assert self.process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/ping", timeout=2) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError as error:
            self.first_ping = self.first_ping or error.code
            return False
        except OSError:
            return False

    def post(self, body: Any, path: str = "/invocations") -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, data), timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def lines(self, body: Any) -> list[Any]:
        """A streamed answer, one object a line."""
        data = json.dumps({**body, "stream": True}).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}/invocations", data), timeout=60) as answer:
            assert answer.headers["Content-Type"] == "application/jsonlines"
            return [json.loads(line) for line in answer]

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

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
    server = Lmi(model, OPTION_DTYPE="fp32")  # in bf16 the size of a batch can change a likeliest token
    yield server
    server.stop()


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


def test_requests_that_are_answered_together_get_the_answers_they_get_alone(lmi: Lmi) -> None:
    prompts = ["one", "a longer prompt than the others", "three", "4", "and five", "6" * 60, "seven", "eight"]
    parameters: list[dict[str, Any]] = [
        {"max_new_tokens": 8 + 3 * number, **({"seed": number, "temperature": 2.0} if number % 2 else {})}
        for number in range(len(prompts))
    ]
    alone = [lmi.generate(prompt, **one) for prompt, one in zip(prompts, parameters, strict=True)]
    with ThreadPoolExecutor(len(prompts)) as pool:
        together = pool.map(lambda prompt, one: lmi.generate(prompt, **one), prompts, parameters)
        assert list(together) == alone


def test_more_requests_than_places_are_all_answered(model: Path) -> None:
    server = Lmi(model, OPTION_MAX_ROLLING_BATCH_SIZE="3")
    try:
        with ThreadPoolExecutor(20) as pool:
            answers = list(
                pool.map(lambda n: server.generate("x" * (n + 1), max_new_tokens=5, details=True), range(20))
            )
        assert all(1 <= answer["details"]["generated_tokens"] <= 5 for answer in answers)
    finally:
        server.stop()


def test_a_streamed_answer_is_the_whole_one_in_pieces(lmi: Lmi) -> None:
    parameters: dict[str, Any] = {"max_new_tokens": 20, "temperature": 2.0, "seed": 3}
    whole = lmi.generate(**parameters)["generated_text"]
    lines = lmi.lines({"inputs": "hello", "parameters": {**parameters, "details": True}})
    assert [line["generated_text"] for line in lines[:-1]] == [None] * (len(lines) - 1)
    assert lines[-1]["generated_text"] == whole == "".join(line["token"]["text"] for line in lines)
    assert lines[-1]["details"]["generated_tokens"] == len(lines)
    assert all(line["token"]["logprob"] <= 0 for line in lines)


def test_a_chat_is_answered_in_openais_form(lmi: Lmi) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    status, answer = lmi.post({"messages": messages, "max_tokens": 6, "temperature": 0})
    assert status == 200
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["choices"][0]["finish_reason"] in ("stop", "length")
    rendered = "[system]Be brief.[user]hi>"
    assert answer["usage"]["prompt_tokens"] == len(rendered)
    assert answer["choices"][0]["message"]["content"] == lmi.generate(rendered, max_new_tokens=6)["generated_text"]


def test_a_chat_can_be_streamed(lmi: Lmi) -> None:
    request = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9, "temperature": 1.5, "seed": 1}
    whole = lmi.post(request)[1]["choices"][0]["message"]["content"]
    *lines, usage = lmi.lines({**request, "stream_options": {"include_usage": True}})
    assert {line["object"] for line in lines} == {"chat.completion.chunk"}
    assert lines[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(line["choices"][0]["delta"]["content"] for line in lines) == whole
    assert [line["choices"][0]["finish_reason"] for line in lines[:-1]] == [None] * (len(lines) - 1)
    assert lines[-1]["choices"][0]["finish_reason"] in ("stop", "length")
    assert usage["usage"]["completion_tokens"] <= 9


def test_a_client_that_goes_away_leaves_its_place_to_others(model: Path) -> None:
    server = Lmi(model, OPTION_MAX_ROLLING_BATCH_SIZE="1")
    try:
        data = json.dumps({"inputs": "a", "parameters": {"max_new_tokens": 120}, "stream": True}).encode()
        answer = urllib.request.urlopen(urllib.request.Request(f"{server.url}/invocations", data), timeout=60)
        answer.readline()
        answer.close()
        assert server.generate(max_new_tokens=2)
    finally:
        server.stop()


def test_model_py_changes_requests_as_in_lmi(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    (folder / "model.py").write_text(FORMATTER, encoding="utf-8")
    server = Lmi(folder, OPTION_DTYPE="fp32")
    try:
        plain = server.generate("Q: why A:", max_new_tokens=5)
        status, rendered = server.post({"inputs": {"question": "why"}, "parameters": {"max_new_tokens": 5}})
        assert (status, rendered) == (200, plain)
        status, refused = server.post({"inputs": {"wrong": "why"}})
        assert status == 424
        assert "Custom formatter failed" in refused["error"]
        assert "question" in refused["error"]
        assert server.generate("Q: why A:", max_new_tokens=5) == plain
    finally:
        server.stop()


MAKE_ADAPTER = """
import json, sys, torch
from pathlib import Path
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

base, adapter, merged = map(Path, sys.argv[1:])
torch.manual_seed(1)
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
tensors = {}
for layer in range(2):
    for name in ("q_proj", "v_proj"):
        module = model.get_submodule(f"model.layers.{layer}.self_attn.{name}")
        first, second = torch.randn(4, module.in_features), torch.randn(module.out_features, 4)
        key = f"base_model.model.model.layers.{layer}.self_attn.{name}"
        tensors |= {f"{key}.lora_A.weight": first, f"{key}.lora_B.weight": second}
        module.weight.data += 8 / 4 * second @ first
adapter.mkdir()
save_file(tensors, adapter / "adapter_model.safetensors")
(adapter / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}))
model.save_pretrained(merged)
"""


def test_an_adapter_on_the_base_answers_as_the_merged_model_also_beside_others(model: Path, tmp_path: Path) -> None:
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    shutil.copytree(model, merged)
    program = [str(STEPS_ENVIRONMENT / "bin/python3"), "-c", MAKE_ADAPTER, str(model), str(adapter), str(merged)]
    subprocess.run(program, check=True, capture_output=True)
    tuned, base = Lmi(merged, OPTION_DTYPE="fp32"), Lmi(model, OPTION_DTYPE="fp32", OPTION_ENABLE_LORA="true")
    try:
        assert base.post({"name": "mine", "src": str(adapter)}, path="/adapters")[0] == 200
        expected = tuned.generate("hello", max_new_tokens=12)
        plain = base.generate("hello", max_new_tokens=12)
        assert expected != plain

        def ask(adapters: str | None) -> Any:
            chosen = {} if adapters is None else {"adapters": adapters}
            return base.post({"inputs": "hello", "parameters": {"max_new_tokens": 12}, **chosen})[1]

        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(ask, ["mine", None] * 3)) == [expected, plain] * 3
        status, answer = base.post({"inputs": "hello", "adapters": "theirs"})
        assert (status, "Available adapters: mine" in answer["error"]) == (424, True)
        status, answer = base.post({"name": "bad", "src": str(tmp_path / "nothing")}, path="/adapters")
        assert (status, "PEFT's format" in answer["error"]) == (400, True)
        assert tuned.post({"name": "mine", "src": str(adapter)}, path="/adapters")[0] == 400
    finally:
        tuned.stop()
        base.stop()


def test_while_the_model_is_loaded_nothing_is_served(lmi: Lmi) -> None:
    assert lmi.first_ping == 503


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[1]",
        b"{}",
        b"[" * 100_000,
        b"\xff",
        {"inputs": 5},
        {"inputs": "a", "parameters": {"nope": 1}},
        {"messages": []},
        {"messages": [{"role": "user", "content": "a"}], "inputs": "a"},
        {"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "late"}]},
    ],
)
def test_a_wrong_request_gets_400_and_the_server_goes_on(lmi: Lmi, body: Any) -> None:
    status, answer = lmi.post(body)
    assert status == 400
    assert answer["error"]
    assert lmi.healthy()


def test_a_body_that_is_too_large_gets_413_and_the_server_goes_on(lmi: Lmi) -> None:
    connection = http.client.HTTPConnection(lmi.url.removeprefix("http://"), timeout=10)
    connection.putrequest("POST", "/invocations")
    connection.putheader("Content-Length", "7000000")
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413
    assert "6553500" in answer.read().decode()
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
        server.stop()


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
        read_request({"inputs": "a", "parameters": parameters})


def test_all_problems_come_at_once() -> None:
    with pytest.raises(BadRequest) as caught:
        read_request({"input": "a", "parameters": {"x": 1, "top_p": 7}})
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
    assert read_request({"inputs": "a", "parameters": parameters}).greedy is greedy


@settings(suppress_health_check=[HealthCheck.too_slow])  # the first text of all makes tables of Unicode
@given(
    st.dictionaries(
        st.sampled_from(sorted(PARAMETERS)), st.none() | st.booleans() | st.integers() | st.floats() | st.text()
    )
)
def test_any_parameters_are_read_or_refused_by_name(parameters: dict[str, Any]) -> None:
    try:
        read_request({"inputs": "a", "parameters": parameters})
    except BadRequest as error:
        assert any(f"'{name}'" in str(error) for name in parameters)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"messages": [{"role": "robot", "content": "a"}]}, "the roles are system, user, assistant"),
        ({"messages": [{"role": "user"}]}, "message 1 has no 'content'"),
        ({"messages": "hi"}, "'messages' is \"hi\", and must be a list"),
        ({"messages": [{"role": "user", "content": "a"}], "n": 2}, "'n' is 2, and must be 1"),
        ({"messages": [{"role": "user", "content": "a"}], "max_new_tokens": 2}, "unknown field 'max_new_tokens'"),
    ],
)
def test_a_wrong_chat_is_refused_with_what_is_allowed(request_: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        read_request(request_)


@given(
    st.dictionaries(
        st.sampled_from(sorted(CHAT_FIELDS)), st.none() | st.booleans() | st.integers() | st.floats() | st.text()
    )
)
def test_any_chat_is_read_or_refused_by_name(fields: dict[str, Any]) -> None:
    request = {"messages": [{"role": "user", "content": "a"}], **fields}
    try:
        read_request(request)
    except BadRequest as error:
        assert any(f"'{name}'" in str(error) for name in fields)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_object_or_refused(body: bytes) -> None:
    try:
        assert isinstance(read_json(body), dict)
    except BadRequest as error:
        assert error.code == 400
