"""Other local AWS servers: each is one account in one region, and they know each other by a folder.

A server with the option --neighbours writes <account>-<region>.json there at its start, with its URL and a secret that only
a neighbour's request carries, and removes it at its end. Who reads the folder is trusted as the servers trust each other, so
it is its owner's alone, and jobs see it empty.
"""

import http.client
import json
import os
import secrets
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local_aws.request_actions import Place
from local_aws.settings import Settings

# Of a neighbour's request: that it is one, and who calls (as JSON; a principal that is empty is an administrator).
SECRET_HEADER, CALLER_HEADER = "X-Local-Aws-Secret", "X-Local-Aws-Caller"
QUESTIONS = "/_local/neighbours/"  # what servers ask each other beside AWS's own requests
WAIT_SECONDS = 300  # for an answer, before a neighbour counts as hanging


class NeighbourError(Exception):
    """No server answers for a place, or not as a neighbour does; the message names it and says what to do."""

    code = "NoNeighbour"


@dataclass(frozen=True)
class Neighbour:
    """A server that answers for a place."""

    place: Place
    url: str
    secret: str


_settings: Settings
_own: Neighbour | None = None  # none without the option


def install(settings: Settings) -> None:
    """Know the folder. Raises NeighbourError if others can read it, or if somebody answers for our place already."""
    global _settings, _own
    _settings, _own = settings, None
    folder = settings.neighbours
    if folder is None:
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    mode = folder.stat().st_mode & 0o777
    if mode & 0o077:
        raise NeighbourError(
            f"{folder} holds secrets and is open to others (mode {mode:o}): chmod 700 {folder}, or name another folder"
        )
    own = Neighbour(Place(settings.region, settings.account), settings.url, secrets.token_urlsafe(32))
    before = _read(_file(own.place))
    if before is not None and _answers(before):
        raise NeighbourError(
            f"account {settings.account} in {settings.region} is answered for at {before.url} already ({_file(own.place)}); "
            "end that server, or take another --account or --region"
        )
    _own = own


def announce() -> None:
    """From now on others find this server."""
    if _own is None:
        return
    path = _file(_own.place)
    fresh = path.with_suffix(".new")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump({"url": _own.url, "secret": _own.secret}, file)
    fresh.replace(path)


def withdraw() -> None:
    """From now on others do not find this server."""
    if _own is not None:
        _file(_own.place).unlink(missing_ok=True)


def is_ours(secret: str) -> bool:
    """Whether a request that carries this comes from a neighbour."""
    return _own is not None and secrets.compare_digest(secret.encode(), _own.secret.encode())


def others() -> list[Neighbour]:
    """The servers that have announced themselves, but this one."""
    if _own is None:
        return []
    found = [_read(path) for path in sorted(_folder().glob("*-*.json"))]
    return [one for one in found if one is not None and one.place != _own.place]


def at(place: Place) -> Neighbour:
    """Who answers for a place. Raises NeighbourError if nobody does."""
    known = others()
    found = next((one for one in known if one.place == place), None)
    if found is None:
        told = ", ".join(f"{one.place.account} in {one.place.region}" for one in known) or "nobody else"
        raise NeighbourError(
            f"no local AWS answers for account {place.account} in {place.region}; this one is {_settings.account} in "
            f"{_settings.region} and knows {told}; start python -m local_aws --account {place.account} --region "
            f"{place.region} --neighbours {_settings.neighbours}"
        )
    return found


def told(principal: str, name: str) -> dict[str, str]:
    """Who calls, as a neighbour is told: a role of ours and what acts as it, or nobody, who is an administrator."""
    return {"principal": principal, "name": name, "account": _settings.account, "region": _settings.region}


def send(
    neighbour: Neighbour, method: str, path: str, headers: dict[str, str], body: bytes, caller: dict[str, str]
) -> http.client.HTTPResponse:
    """A request to a neighbour in a caller's name; whoever gets the answer closes it. Raises NeighbourError."""
    own = {SECRET_HEADER: neighbour.secret, CALLER_HEADER: json.dumps(caller), "Connection": "close"}
    host = urllib.parse.urlsplit(neighbour.url)
    assert host.hostname is not None
    connection = http.client.HTTPConnection(host.hostname, host.port, timeout=WAIT_SECONDS)
    try:
        connection.request(method, path, body, {"Host": host.netloc, **headers, **own})
        return connection.getresponse()
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        place = neighbour.place
        raise NeighbourError(
            f"the local AWS of account {place.account} in {place.region} does not answer at {neighbour.url} "
            f"({type(error).__name__}: {error}); start it again, or remove {_file(place)} if it is gone for good"
        ) from None


def ask(neighbour: Neighbour, question: str, asked: dict[str, Any], caller: dict[str, str] | None = None) -> Any:
    """What a neighbour answers to one of the servers' own questions. Raises NeighbourError."""
    headers = {"Content-Type": "application/json"}
    answer = send(neighbour, "POST", QUESTIONS + question, headers, json.dumps(asked).encode(), caller or {})
    with answer:
        content = answer.read()
    if answer.status != 200:
        place = neighbour.place
        raise NeighbourError(
            f"the local AWS of account {place.account} in {place.region} answered {answer.status} to '{question}': "
            f"{content[:500].decode(errors='replace')}"
        )
    return json.loads(content)


def role_policies(home: Place, role: str) -> list[tuple[str, str]]:
    """Name and document of each policy of a role that is at home there. Raises NeighbourError."""
    return [(name, text) for name, text in ask(at(home), "role_policies", {"role": role})]


def holder(bucket: str) -> Neighbour | None:
    """The neighbour that has a bucket of that name. Raises NeighbourError."""
    return next((one for one in others() if ask(one, "bucket", {"name": bucket})), None)


def _answers(neighbour: Neighbour) -> bool:
    try:
        return bool(ask(neighbour, "bucket", {"name": ""}) is False)
    except NeighbourError:
        return False  # its server was killed, or something else has its port now


def _folder() -> Path:
    assert _settings.neighbours is not None
    return _settings.neighbours


def _file(place: Place) -> Path:
    return _folder() / f"{place.account}-{place.region}.json"


def _read(path: Path) -> Neighbour | None:
    """The server of a file; none if it has withdrawn meanwhile."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    account, _, region = path.stem.partition("-")
    return Neighbour(Place(region, account), told["url"], told["secret"])
