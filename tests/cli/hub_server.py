"""A server that speaks the Hugging Face hub's protocol, as far as an import calls it: what a model is, and its files."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """One repository, `org/model`, at one commit. `files` by name; of those in `large` the hub tells the SHA-256.

    `token`: the repository is gated, and only requests with it get files. `corrupt`: files that are sent with one byte
    changed. `cut_once`: files whose first transfer ends in the middle.
    """

    files: dict[str, bytes]
    large: set[str] = field(default_factory=set)
    token: str | None = None
    corrupt: set[str] = field(default_factory=set)
    cut_once: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def described(self) -> dict[str, Any]:
        siblings = []
        for name, content in self.files.items():
            entry: dict[str, Any] = {
                "rfilename": name,
                "size": len(content),
                "blobId": hashlib.sha1(content).hexdigest(),
            }
            if name in self.large:
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 135}
            siblings.append(entry)
        return {
            "_id": "1", "id": "org/model", "modelId": "org/model", "sha": COMMIT, "private": False, "disabled": False,
            "gated": "manual" if self.token else False, "tags": ["transformers", "license:apache-2.0"], "downloads": 1,
            "likes": 0, "siblings": siblings,
        }  # fmt: skip


@contextmanager
def running(hub: Hub) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
            if path.startswith("/api/models/org/model"):
                revision = path.partition("/revision/")[2]
                if revision in ("", "main", COMMIT):
                    return self.send_body(
                        200, json.dumps(hub.described()).encode(), {"Content-Type": "application/json"}
                    )
                return self.refuse(404, "RevisionNotFound")
            name = path.removeprefix(f"/org/model/resolve/{COMMIT}/")
            if name == path or name not in hub.files:
                return self.refuse(404, "EntryNotFound" if name != path else "RepoNotFound")
            if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self.refuse(403, "GatedRepo")
            self.send_file(name, hub.files[name])

        def send_file(self, name: str, content: bytes) -> None:
            etag = hashlib.sha256(content).hexdigest()
            sent = bytes([content[0] ^ 1]) + content[1:] if name in hub.corrupt else content
            start = int(self.headers["Range"].removeprefix("bytes=").split("-")[0]) if "Range" in self.headers else 0
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            cut = self.command == "GET" and name in hub.cut_once
            if cut:
                hub.cut_once.discard(name)
            self.send_body(206 if start else 200, sent[start:], headers, cut)

        def send_body(self, status: int, body: bytes, headers: dict[str, str], cut: bool = False) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[: len(body) // 2] if cut else body)
            if cut:
                self.close_connection = True

        def refuse(self, status: int, code: str) -> None:
            self.send_body(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def safetensors(content: bytes) -> bytes:
    """A safetensors file with one tensor of these bytes."""
    header = json.dumps(
        {"weight": {"dtype": "U8", "shape": [len(content)], "data_offsets": [0, len(content)]}}
    ).encode()
    return len(header).to_bytes(8, "little") + header + content


def model_files(weights: bytes = b"weights") -> dict[str, bytes]:
    """The files of a model that looks like one; nobody loads it."""
    return {"config.json": b"{}", "model.safetensors": safetensors(weights), "tokenizer.json": b"{}"}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder
