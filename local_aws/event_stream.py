"""AWS's event stream encoding (application/vnd.amazon.eventstream), as InvokeEndpointWithResponseStream answers it.

A message is: total length, length of the headers, CRC-32 of these two; headers; payload; CRC-32 of all before.
Numbers are big-endian; a header is its name, the type 7 (text) and its value, each text after its length.
"""

import json
import struct
import zlib

CONTENT_TYPE = "application/vnd.amazon.eventstream"


def payload_part(piece: bytes) -> bytes:
    """A piece of the answer."""
    headers = {":message-type": "event", ":event-type": "PayloadPart", ":content-type": "application/octet-stream"}
    return message(headers, piece)


def exception(name: str, text: str, code: str) -> bytes:
    """An error after which no more pieces come."""
    headers = {":message-type": "exception", ":exception-type": name, ":content-type": "application/json"}
    return message(headers, json.dumps({"Message": text, "ErrorCode": code}).encode())


def message(headers: dict[str, str], payload: bytes) -> bytes:
    """One encoded message."""
    encoded = b"".join(
        struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", 7, len(value.encode())) + value.encode()
        for name, value in headers.items()
    )
    prelude = struct.pack("!II", len(encoded) + len(payload) + 16, len(encoded))
    body = prelude + struct.pack("!I", zlib.crc32(prelude)) + encoded + payload
    return body + struct.pack("!I", zlib.crc32(body))
