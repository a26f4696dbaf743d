"""A stand-in for AWS's LMI image (DJL Serving with vLLM): the same HTTP interface, served by transformers on this machine.

GET  /ping         200 once the model is loaded; nothing answers before
POST /invocations  {"inputs": str, "parameters": {...}} -> {"generated_text": str}, or [{"generated_text": str}] with
                   OPTION_TGI_COMPAT=true. A request that is wrong gets 400 and {"error": text, "code": 400}; the server goes on.

Environment, as in LMI: HF_MODEL_ID (default /opt/ml/model), OPTION_MAX_MODEL_LEN (tokens; default: what the model can),
OPTION_TGI_COMPAT, OPTION_DTYPE (bf16, fp16 or fp32; default bf16, which is also faster on CPUs), SAGEMAKER_BIND_TO_PORT (default 8080).

One file, run by the image's own interpreter: standard library, torch and transformers only.
"""

import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DEFAULT_NEW_TOKENS = 30  # as in LMI


class BadRequest(Exception):
    """The request cannot be answered as it stands; the text says what is wrong and what is allowed."""


@dataclass(frozen=True)
class Rule:
    """What a generation parameter may be."""

    allowed: str
    accepts: Callable[[Any], bool]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return (_whole(value) or isinstance(value, float)) and math.isfinite(value)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(member, str) and member for member in value)


PARAMETERS = {
    "do_sample": Rule("true or false", lambda value: isinstance(value, bool)),
    "max_new_tokens": Rule("a whole number from 1", lambda value: _whole(value) and value >= 1),
    "repetition_penalty": Rule("a number above 0", lambda value: _number(value) and value > 0),
    "return_full_text": Rule("true or false", lambda value: isinstance(value, bool)),
    "seed": Rule("a whole number from 0", lambda value: _whole(value) and 0 <= value < 2**63),
    "stop": Rule(
        "a text or a list of texts, none empty", lambda value: (isinstance(value, str) and value != "") or _texts(value)
    ),
    "temperature": Rule("a number from 0", lambda value: _number(value) and value >= 0),
    "top_k": Rule("a whole number from 1, or -1 for all", lambda value: _whole(value) and (value >= 1 or value == -1)),
    "top_p": Rule("a number above 0, up to 1", lambda value: _number(value) and 0 < value <= 1),
    "details": Rule("true or false", lambda value: isinstance(value, bool)),
}
PARAMETERS["stop_sequences"] = PARAMETERS["stop"]


@dataclass(frozen=True)
class Generation:
    """A checked request. `greedy` decides between the likeliest token and sampling."""

    prompt: str
    max_new_tokens: int
    greedy: bool
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    seed: int | None
    stop: tuple[str, ...]
    full_text: bool
    details: bool


def read_request(body: bytes) -> Generation:
    """Check a request's body. Raises BadRequest with every problem at once."""
    try:
        request = json.loads(body)
    except ValueError as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
    if not isinstance(request, dict):
        raise BadRequest('the body must be an object: {"inputs": "text", "parameters": {...}}')
    problems = [
        f"unknown field '{name}'; the fields are inputs, parameters"
        for name in request
        if name not in ("inputs", "parameters", "stream")
    ]
    prompt, parameters = request.get("inputs"), request.get("parameters") or {}
    if not isinstance(prompt, str) or not prompt:
        problems.append("'inputs' is missing or is no text; it holds the prompt")
    if request.get("stream"):
        problems.append("'stream' is true; this server answers in one piece")
    if not isinstance(parameters, dict):
        raise BadRequest("; ".join([*problems, "'parameters' must be an object"]))
    for name, value in parameters.items():
        rule = PARAMETERS.get(name)
        if rule is None:
            problems.append(f"unknown parameter '{name}'; the parameters are {', '.join(sorted(PARAMETERS))}")
        elif value is not None and not rule.accepts(value):
            problems.append(f"parameter '{name}' is {json.dumps(value)}, and must be {rule.allowed}")
    if problems:
        raise BadRequest("; ".join(problems))
    given = {name: value for name, value in parameters.items() if value is not None}
    stop = given.get("stop", given.get("stop_sequences", []))
    temperature = float(given.get("temperature", 1.0))
    # As in LMI: sampling when it is asked for, or when a temperature is given; temperature 0 is greedy.
    wants_sampling = given.get("do_sample", "temperature" in given)
    return Generation(
        prompt=str(prompt),
        max_new_tokens=given.get("max_new_tokens", DEFAULT_NEW_TOKENS),
        greedy=not wants_sampling or temperature == 0,
        temperature=temperature,
        top_k=given.get("top_k", -1),
        top_p=float(given.get("top_p", 1.0)),
        repetition_penalty=float(given.get("repetition_penalty", 1.0)),
        seed=given.get("seed"),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        full_text=given.get("return_full_text", False),
        details=given.get("details", False),
    )


class Model:
    """The model and its tokenizer. One generation at a time."""

    def __init__(self, folder: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._torch = torch
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtypes = {"auto": torch.bfloat16, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
        dtype = dtypes[os.environ.get("OPTION_DTYPE", "auto")]
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True).to(device).eval()
        # The model's own sampling defaults would silently change what a request without parameters means.
        self._model.generation_config.update(do_sample=False, temperature=None, top_p=None, top_k=None)
        can = getattr(self._model.config, "max_position_embeddings", None) or sys.maxsize
        self.longest = min(can, int(os.environ.get("OPTION_MAX_MODEL_LEN", can)))
        end = self._model.generation_config.eos_token_id
        self._ends = set(end if isinstance(end, list) else [end]) - {None}
        padding = self._tokenizer.pad_token_id
        self._padding = padding if padding is not None else next(iter(self._ends), 0)
        self._lock = threading.Lock()

    def generate(self, request: Generation) -> dict[str, Any]:
        """Answer one request: {"generated_text": str} and, if asked for, {"details": {...}}. Raises BadRequest."""
        torch = self._torch
        tokens = self._tokenizer(request.prompt, return_tensors="pt").to(self._model.device)
        prompt_length = tokens["input_ids"].shape[1]
        if prompt_length == 0:
            raise BadRequest("'inputs' has no tokens; it holds the prompt")
        if prompt_length >= self.longest:
            raise BadRequest(
                f"the prompt has {prompt_length} tokens, and prompt and answer together may have {self.longest}; shorten the prompt"
            )
        new_tokens = min(request.max_new_tokens, self.longest - prompt_length)
        sampling: dict[str, Any] = {"do_sample": False}
        if not request.greedy:
            top_k = 0 if request.top_k == -1 else request.top_k
            sampling = {"do_sample": True, "temperature": request.temperature, "top_p": request.top_p, "top_k": top_k}
        if request.stop:
            sampling |= {"stop_strings": list(request.stop), "tokenizer": self._tokenizer}
        with self._lock, torch.inference_mode():
            if request.seed is not None:
                torch.manual_seed(request.seed)
            output = self._model.generate(
                **{name: tokens[name] for name in ("input_ids", "attention_mask")},
                max_new_tokens=new_tokens,
                repetition_penalty=request.repetition_penalty,
                pad_token_id=self._padding,
                **sampling,
            )
        answer = output[0, prompt_length:].tolist()
        ended = bool(answer) and answer[-1] in self._ends
        text = self._tokenizer.decode(answer, skip_special_tokens=True)
        found = [place for place in (text.find(stop) for stop in request.stop) if place >= 0]
        if found:
            text = text[: min(found)]
        reply: dict[str, Any] = {"generated_text": request.prompt + text if request.full_text else text}
        if request.details:
            reason = "eos_token" if ended else "stop_sequence" if found else "length"
            reply["details"] = {"finish_reason": reason, "generated_tokens": len(answer), "inputs": None}
        return reply


class Handler(BaseHTTPRequestHandler):
    """/ping and /invocations. `model` and `tgi_compatible` are set before the server starts."""

    model: Model
    tgi_compatible = False
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/ping":
            self._answer(200, {"status": "Healthy"})
        else:
            self._answer(
                404, {"error": f"there is no GET {self.path}; there are GET /ping and POST /invocations", "code": 404}
            )

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != "/invocations":
            self._answer(
                404, {"error": f"there is no POST {self.path}; there are GET /ping and POST /invocations", "code": 404}
            )
            return
        started = time.perf_counter()
        try:
            reply = self.model.generate(read_request(body))
        except BadRequest as error:
            print(f"400 {error}", flush=True)
            self._answer(400, {"error": str(error), "code": 400})
        except Exception as error:  # one request must not end the server
            print(f"500 {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            self._answer(500, {"error": f"{type(error).__name__}: {error}", "code": 500})
        else:
            print(f"200 in {time.perf_counter() - started:.3f} s", flush=True)
            self._answer(200, [reply] if self.tgi_compatible else reply)

    def _answer(self, status: int, content: Any) -> None:
        body = json.dumps(content, ensure_ascii=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """No line for each health check; do_POST prints its own."""


def main() -> None:
    folder = os.environ.get("HF_MODEL_ID", "/opt/ml/model")
    port = int(os.environ.get("SAGEMAKER_BIND_TO_PORT", "8080"))
    started = time.perf_counter()
    print(f"loading the model from {folder}", flush=True)
    Handler.model = Model(folder)
    Handler.tgi_compatible = os.environ.get("OPTION_TGI_COMPAT", "false").lower() == "true"
    print(
        f"loaded in {time.perf_counter() - started:.1f} s, at most {Handler.model.longest} tokens; listening on port {port}",
        flush=True,
    )
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main()
