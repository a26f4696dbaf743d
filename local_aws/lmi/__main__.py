"""The HTTP server of the stand-in.

GET  /ping         503 while the model is loaded, then 200
POST /invocations  {"inputs": str, "parameters": {...}} -> {"generated_text": str}, or [{"generated_text": str}] with
                   OPTION_TGI_COMPAT=true; {"messages": [...]} -> a chat completion; with "stream": true lines of JSON as
                   the tokens come. Errors are {"error": text, "code": status}: 400 for what is wrong in the request, 413
                   for one too large, 424 where the model's own model.py refuses it, 503 while the model is loaded or too
                   many wait. The server goes on after each.
POST /adapters     {"name": str, "src": folder} loads a LoRA adapter; DELETE /adapters/NAME forgets it. A request names its
                   adapter in the header X-Amzn-SageMaker-Adapter-Identifier, or in the field "adapters".

Environment, as in LMI: HF_MODEL_ID (default /opt/ml/model), OPTION_MAX_MODEL_LEN (tokens; default: what the model can),
OPTION_MAX_ROLLING_BATCH_SIZE (sequences answered at the same time; default 32), OPTION_TGI_COMPAT, OPTION_ENABLE_LORA
and OPTION_MAX_LORA_RANK (default 16), OPTION_DTYPE (bf16, fp16 or fp32; default bf16, for which a CPU without
instructions for it takes fp32), SAGEMAKER_BIND_TO_PORT (default 8080).
"""

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from local_aws.lmi import formatter
from local_aws.lmi.payloads import BadRequest, read_json, read_request

ADAPTER_HEADER = "X-Amzn-SageMaker-Adapter-Identifier"
MOST_BODY_BYTES = 6_553_500  # DJL Serving's max_request_size


def _is_true(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() == "true"


class Serving:
    """What answers once it is loaded."""

    def __init__(self, folder: str) -> None:
        # Threads that wait for each other leave the processors to the other processes of this machine.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        from local_aws.lmi import answers, engine  # torch and transformers: seconds, in which /ping answers already

        longest = os.environ.get("OPTION_MAX_MODEL_LEN")
        self.answers, self.overloaded = answers, engine.Overloaded
        self.formatter = formatter.load(Path(folder))
        self.engine = engine.Engine(
            folder,
            dtype=os.environ.get("OPTION_DTYPE", "auto"),
            longest=int(longest) if longest else None,
            most_sequences=int(os.environ.get("OPTION_MAX_ROLLING_BATCH_SIZE", "32")),
            most_rank=int(os.environ.get("OPTION_MAX_LORA_RANK", "16")) if _is_true("OPTION_ENABLE_LORA") else None,
        )
        self.tgi_compatible = _is_true("OPTION_TGI_COMPAT")


class Server(ThreadingHTTPServer):
    request_queue_size = 1024  # a burst waits instead of being refused by the kernel
    serving: Serving | None = None


class Handler(BaseHTTPRequestHandler):
    """/ping and /invocations."""

    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body leave together

    def do_GET(self) -> None:
        if self.path != "/ping":
            self._refuse(404, f"there is no GET {self.path}; there are GET /ping and POST /invocations")
        elif self.server.serving is None:
            self._answer(503, {"status": "Loading"})
        else:
            self._answer(200, {"status": "Healthy"})

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        if length > MOST_BODY_BYTES:
            self.close_connection = True  # the body stays unread
            return self._refuse(413, f"the body has {length} bytes, and may have {MOST_BODY_BYTES}")
        body = self.rfile.read(length)
        serving = self.server.serving
        if self.path not in ("/invocations", "/adapters"):
            return self._refuse(404, f"there is no POST {self.path}; there are GET /ping and POST /invocations")
        if serving is None:
            return self._refuse(503, "the model is being loaded; try again when GET /ping answers 200")
        if self.path == "/adapters":
            return self._load_adapter(serving, body)
        started = time.perf_counter()
        try:
            decoded = formatter.apply(serving.formatter, read_json(body), serving.engine.tokenizer)
            adapter = self.headers.get(ADAPTER_HEADER) or decoded.pop("adapters", None)
            sequence = serving.engine.start(read_request(decoded), adapter)
        except BadRequest as error:
            return self._refuse(error.code, str(error))
        except serving.overloaded as error:
            return self._refuse(503, str(error))
        try:
            if sequence.request.stream:
                self._stream(serving.answers.lines(sequence))
            else:
                self._answer(200, serving.answers.whole(sequence, serving.tgi_compatible))
            seconds = time.perf_counter() - started
            print(f"200 {len(sequence.prompt)} + {len(sequence.ids)} tokens in {seconds:.3f} s", flush=True)
        except ConnectionError:
            print("the client went away", flush=True)
        except Exception as error:  # one request must not end the server
            self._refuse(500, f"{type(error).__name__}: {error}")
        finally:
            sequence.cancelled = True

    def do_DELETE(self) -> None:
        name = self.path.removeprefix("/adapters/")
        adapters = self.server.serving.engine.adapters if self.server.serving is not None else None
        if adapters is None or name not in adapters:
            return self._refuse(404, f"there is no adapter {name}")
        adapters.unload(name)
        self._answer(200, {"status": f"Adapter {name} unregistered"})

    def _load_adapter(self, serving: Serving, body: bytes) -> None:
        """{"name": str, "src": folder}, as DJL Serving registers adapters."""
        from local_aws.lmi.lora import AdapterError

        adapters = serving.engine.adapters
        if adapters is None:
            return self._refuse(400, "OPTION_ENABLE_LORA is not true, so this server takes no adapters")
        try:
            wanted = read_json(body)
            adapters.load(str(wanted["name"]), Path(str(wanted["src"])))
        except KeyError as error:
            return self._refuse(400, f"{error} is missing; an adapter is registered with name and src")
        except (BadRequest, AdapterError) as error:
            return self._refuse(400, str(error))
        self._answer(200, {"status": f"Adapter {wanted['name']} registered"})

    def _stream(self, lines: Any) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/jsonlines")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for line in lines:
                self._chunk(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        except ConnectionError:
            raise
        except Exception as error:  # too late for a status
            self._chunk(json.dumps({"error": f"{type(error).__name__}: {error}", "code": 500}).encode() + b"\n")
        self._chunk(b"")

    def _chunk(self, piece: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        self.wfile.flush()

    def _refuse(self, status: int, text: str) -> None:
        print(f"{status} {text}", file=sys.stderr, flush=True)
        self._answer(status, {"error": text, "code": status})

    def _answer(self, status: int, content: Any) -> None:
        body = json.dumps(content, ensure_ascii=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        """No line for each health check; do_POST prints its own."""


def main() -> None:
    folder = os.environ.get("HF_MODEL_ID", "/opt/ml/model")
    port = int(os.environ.get("SAGEMAKER_BIND_TO_PORT", "8080"))
    server = Server(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    started = time.perf_counter()
    print(f"loading the model from {folder}; listening on port {port}", flush=True)
    serving = server.serving = Serving(folder)
    print(
        f"loaded in {time.perf_counter() - started:.1f} s: at most {serving.engine.longest} tokens, "
        f"{serving.engine.most_sequences} sequences at the same time, input formatter: {bool(serving.formatter)}",
        flush=True,
    )
    threading.Event().wait()


if __name__ == "__main__":
    main()
