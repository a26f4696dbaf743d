"""What local AWS keeps from one start to the next, by option: everything that is state, and nothing that is a process.

Kept in a folder at an orderly end, and read again at the start: S3 objects (each in a file of its own), stacks, roles, rules,
schedules, topics, queues, logs, parameters, keys, networks, metrics and alarms of moto; jobs, pipelines, executions with their step
cache, models, packages and endpoint configurations of SageMaker. Not kept: endpoints and inference components, which are
processes (an approved package makes them anew), imports into Bedrock, sessions of roles, and the clock that tests have moved.

The state is a pickle of objects of this program and of moto: it is read by the very versions that wrote it, and by no other.
"""

import hashlib
import pickle
import shutil
import threading
from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cloudpickle
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from moto.backends import get_backend
from moto.s3.models import FakeKey
from moto.s3.utils import _VersionedKeyStore

from local_aws.object_store import copy_object
from local_aws.request_actions import Place
from local_aws.sagemaker import SageMaker

STATE_FILE = "state.pickle"
OBJECTS = "objects"  # the folder with a file for each S3 object
SERVICES = (
    "applicationautoscaling",
    "budgets",
    "cloudformation",
    "cloudwatch",
    "ec2",
    "ecr",
    "events",
    "iam",
    "kms",
    "logs",
    "s3",
    "scheduler",
    "sns",
    "sqs",
    "ssm",
)
LARGE_BYTES = 2**20  # content of larger objects lies in files


class SurvivalError(Exception):
    """The kept state cannot be read; the text says what to do."""


def program() -> str:
    """Which program writes and reads the state: our sources, and the versions of what else is in it."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    return f"moto {version('moto')}, cloudpickle {version('cloudpickle')}, local_aws {digest}"


def save(folder: Path, place: Place, sagemaker: SageMaker) -> None:
    """Keep the state of this server, whose jobs have ended. What was kept before stays if this fails."""
    fresh = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    (fresh / OBJECTS).mkdir(parents=True)
    backends = {name: {account: dict(regions) for account, regions in get_backend(name).items()} for name in SERVICES}
    with (fresh / STATE_FILE).open("wb") as file:
        pickle.dump(program(), file)
        pickle.dump(place, file)
        _Pickler(file, fresh / OBJECTS).dump((backends, sagemaker.state()))
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def restore(folder: Path, place: Place) -> Callable[[SageMaker], None]:
    """Read a kept state into moto, before anything has asked it; returns what gives SageMaker its own.

    Raises SurvivalError if another program has written it, or this one for another place.
    """
    path = folder / STATE_FILE
    if not path.exists():
        return lambda sagemaker: None
    with path.open("rb") as file:
        writer = pickle.load(file)
        if writer != program():
            raise SurvivalError(
                f"{folder} was kept by another version ({writer}; this one is {program()}): remove it to begin empty"
            )
        writers_place = pickle.load(file)
        if writers_place != place:
            raise SurvivalError(
                f"{folder} holds the state of account {writers_place.account} in {writers_place.region}, and this is "
                f"{place.account} in {place.region}: name another folder, or start with that account and region"
            )
        backends, state = _Unpickler(file, folder / OBJECTS).load()
    for name, accounts in backends.items():
        for account, regions in accounts.items():
            get_backend(name)[account].update(regions)
    return lambda sagemaker: sagemaker.take_over(state)


class _Content:
    """The content of an S3 object in a file of its own, by the file's name."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Locks become new ones, large S3 objects become files, private keys become their encoding."""

    def __init__(self, file: Any, objects: Path) -> None:
        super().__init__(file)
        self._objects = objects
        self._count = 0

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, _LOCK):
            return threading.Lock, ()
        if isinstance(value, _RLOCK):
            return threading.RLock, ()
        if isinstance(value, RSAPrivateKey | EllipticCurvePrivateKey):
            encoding, form = serialization.Encoding.DER, serialization.PrivateFormat.PKCS8
            content = value.private_bytes(encoding, form, serialization.NoEncryption())
            return _private_key, (content,)
        if isinstance(value, defaultdict) and type(value) is not defaultdict:  # its constructor is another one
            made = (type(value), value.default_factory)
            return _default_dict, made, value.__dict__ or None, None, iter(list(value.items()))
        if isinstance(value, _VersionedKeyStore):  # read as usual, it shows the newest versions alone
            return _versions, (list(dict.items(value)),)
        if isinstance(value, FakeKey) and not value._value_buffer.closed and value.size > LARGE_BYTES:
            self._count += 1
            copy_object(value, self._objects / str(self._count))
            state = {**value.__dict__, "_value_buffer": _Content(str(self._count)), "lock": threading.Lock()}
            return object.__new__, (type(value),), state, None, None, _set_state
        return super().reducer_override(value)

    def persistent_id(self, value: Any) -> Any:
        return value.name if isinstance(value, _Content) else None


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, objects: Path) -> None:
        super().__init__(file)
        self._objects = objects

    def persistent_load(self, name: Any) -> Any:
        return (self._objects / name).open("rb")  # it is the object from here on, which closes it


def _private_key(content: bytes) -> Any:
    return serialization.load_der_private_key(content, None)


def _default_dict(kind: Any, factory: Any) -> Any:
    made = kind.__new__(kind)
    made.default_factory = factory
    return made


def _versions(items: list[tuple[str, Any]]) -> Any:
    made = _VersionedKeyStore()
    for name, versions in items:
        dict.__setitem__(made, name, versions)
    return made


_LOCK, _RLOCK = type(threading.Lock()), type(threading.RLock())


def _set_state(key: FakeKey, state: dict[str, Any]) -> None:
    """Past FakeKey's own, which reads the content into memory."""
    key.__dict__.update(state)
