"""Move files between S3 and the jobs' folders, inside this process: no HTTP, no second copy in memory.

Objects live in moto's S3 backend, each in a file of its own once it is larger than moto's buffer. A download copies file to
file in the kernel; an upload of a finished job's file takes the file over. Events of S3 fire as for any other upload.
"""

import hashlib
import json
import mmap
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

from moto.s3 import notifications
from moto.s3.exceptions import MissingBucket
from moto.s3.models import FakeKey, S3Backend, s3_backends

from local_aws import authorization
from local_aws.authorization import ADMINISTRATOR, AccessDenied, Caller
from local_aws.enforcement import key_wanted
from local_aws.networks import NoWay
from local_aws.request_actions import Wanted, s3_list, s3_object
from local_aws.service_faults import TRANSFER_ATTEMPTS, ServiceFault, faults
from local_aws.settings import Settings

PART_BYTES = 64 * 2**20  # larger objects get the ETag of a multipart upload: its parts are hashed in parallel


class ObjectStoreError(Exception):
    """S3 does not hold, or does not take, what the request names; the text is AWS's and starts with "ClientError: "."""


class ObjectStore:
    """The S3 of this server, as the jobs' input and output see it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @property
    def _backend(self) -> S3Backend:
        return s3_backends[self._settings.account]["aws"]

    def download(self, uri: str, folder: Path, *, data_type: str = "S3Prefix", caller: Caller = ADMINISTRATOR) -> int:
        """Copy what `uri` names into `folder` and return the number of bytes.

        S3Prefix takes every key that starts with the prefix, as SageMaker does: `s3://b/train` takes `train/x` (as `x`),
        `train` (as `train`) and also `training.csv` (as `training.csv`). Below the prefix the folders are kept. An object whose
        key ends in "/" is a folder marker and is skipped. ManifestFile reads [{"prefix": "s3://..."}, "key", ...] and keeps
        the keys' folders. Raises ObjectStoreError if there is nothing.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if data_type == "ManifestFile":
            found = self._manifest_objects(uri, caller)
        else:
            self._authorize_list(caller, uri)
            found = list(self._prefix_objects(uri))
            if not found:
                raise self._nothing_found(data_type, uri, caller)
        for key, relative in found:
            self._authorize_object(caller, "GetObject", key.bucket_name, key.name)
            target = folder / relative
            if not target.resolve().is_relative_to(folder.resolve()):
                raise ObjectStoreError(
                    f'ClientError: object "{key.name}" of "{uri}" would be written outside its folder; rename it'
                )
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                _meet_faults("GetObject", split(uri)[0], key.name)
                copy_object(key, target)
            except (FileExistsError, NotADirectoryError, IsADirectoryError):
                raise ObjectStoreError(
                    f'ClientError: "{uri}" holds both an object and a folder named like "{relative}"; rename one'
                ) from None
        return sum(int(key.size) for key, _ in found)

    def holds(self, uri: str, *, caller: Caller = ADMINISTRATOR) -> bool:
        """Whether an object's key starts with that of `uri`. Raises ObjectStoreError if the bucket is not there."""
        bucket, _ = split(uri)
        self._authorize_list(caller, uri)
        try:
            self._backend.get_bucket(bucket)
        except MissingBucket:
            raise ObjectStoreError(
                f'ClientError: "{uri}" is in a bucket that does not exist; create it, or change the S3 URI'
            ) from None
        return any(True for _ in self._prefix_objects(uri))

    def download_model(self, container: dict[str, Any], folder: Path, *, caller: Caller) -> None:
        """Put a model container's files into `folder`: ModelDataSource (uncompressed or tar.gz) or ModelDataUrl (tar.gz)."""
        folder.mkdir(parents=True, exist_ok=True)
        source = container.get("ModelDataSource", {}).get("S3DataSource")
        if source is not None and source["CompressionType"] == "None":
            self.download(source["S3Uri"], folder, caller=caller)
            return
        uri = source["S3Uri"] if source is not None else container.get("ModelDataUrl")
        if uri is None:
            return  # an image that brings its own model
        archive = self.read_object(uri, caller=caller)
        try:
            with tarfile.open(fileobj=archive) as tar:
                tar.extractall(folder, filter="data")
        except tarfile.TarError as error:
            raise ObjectStoreError(f'ClientError: "{uri}" is not a tar.gz archive of a model: {error}') from None
        finally:
            archive.close()

    def read(self, uri: str, *, caller: Caller = ADMINISTRATOR) -> bytes:
        """The content of one object. Raises ObjectStoreError if it is not there."""
        with self.read_object(uri, caller=caller) as file:
            content: bytes = file.read()
        return content

    def read_object(self, uri: str, *, caller: Caller = ADMINISTRATOR) -> Any:
        """One object as a binary file that the caller closes."""
        bucket, name = split(uri)
        self._authorize_object(caller, "GetObject", bucket, name)
        key = self._objects(bucket).get(name)
        if key is None:
            raise self._nothing_found("S3Prefix", uri, caller)
        _meet_faults("GetObject", bucket, name)
        return _open(key)

    def upload_folder(
        self,
        folder: Path,
        uri: str,
        *,
        keep: bool = False,
        root: Path | None = None,
        caller: Caller = ADMINISTRATOR,
    ) -> int:
        """Upload every file below `folder` to `uri`/<path below folder>; returns the number of bytes.

        Unless `keep` is set the files are taken over: they are gone from the folder afterwards. Links are followed as the
        container saw them, if they point below /opt/ml, which is `root` here. Raises ObjectStoreError if the bucket is not there.
        """
        bucket, prefix = split(uri)
        total = 0
        for path in sorted(path for path in folder.rglob("*") if path.is_symlink() or path.is_file()):
            name = "/".join(part for part in (prefix.rstrip("/"), str(PurePosixPath(path.relative_to(folder)))) if part)
            keeps = keep or path.is_symlink()
            total += self._upload(path, bucket, name, keep=keeps, root=root or folder, caller=caller)
        return total

    def upload_file(self, path: Path, uri: str, *, root: Path | None = None, caller: Caller = ADMINISTRATOR) -> int:
        """Upload one file, which is taken over; returns the number of bytes. A link is followed as upload_folder does."""
        bucket, name = split(uri)
        return self._upload(path, bucket, name, keep=path.is_symlink(), root=root or path.parent, caller=caller)

    def upload_copy(self, path: Path, uri: str, root: Path, caller: Caller) -> int:
        """Upload one file that stays where it is; returns the number of bytes."""
        bucket, name = split(uri)
        return self._upload(path, bucket, name, keep=True, root=root, caller=caller)

    def _upload(self, path: Path, bucket_name: str, name: str, *, keep: bool, root: Path, caller: Caller) -> int:
        try:
            bucket = self._backend.get_bucket(bucket_name)
        except MissingBucket:
            raise ObjectStoreError(
                f'ClientError: cannot upload to "s3://{bucket_name}/{name}": the bucket does not exist; '
                "create it, or change the output's S3 URI"
            ) from None
        self._authorize_object(caller, "PutObject", bucket_name, name)
        source = _behind_links(path, root)
        _meet_faults("PutObject", bucket_name, name)
        if keep:
            file = _private_copy(source, self._settings.root)
        else:
            file = source.open("rb")
            source.unlink()  # the open file is the object from here on
        rule = (bucket.encryption or {}).get("Rule", {})
        default = rule.get("ApplyServerSideEncryptionByDefault", {})
        key = FakeKey(
            name=name,
            bucket_name=bucket_name,
            value=b"",
            etag=_etag(file),
            account_id=self._settings.account,
            region_name=self._settings.region,
            is_versioned=bucket.is_versioned,
            version_id=os.urandom(16).hex() if bucket.is_versioned else "null",
            encryption=default.get("SSEAlgorithm"),
            kms_key_id=default.get("KMSMasterKeyID"),
            bucket_key_enabled=rule.get("BucketKeyEnabled"),
        )
        key._value_buffer.close()
        key._value_buffer = file
        key.contentsize = size = os.fstat(file.fileno()).st_size
        older = bucket.keys.getlist(name, []) if bucket.is_versioned else []
        bucket.keys.setlist(name, [*older, key])
        event = notifications.S3NotificationEvent.OBJECT_CREATED_PUT_EVENT
        notifications.send_event(self._settings.account, event, bucket, key)
        return size

    def _authorize_list(self, caller: Caller, uri: str) -> None:
        bucket, prefix = split(uri)
        self._authorize(caller, [s3_list(bucket, prefix)])

    def _authorize_object(self, caller: Caller, action: str, bucket: str, key: str) -> None:
        wanted = [s3_object(action, bucket, key)]
        self._authorize(caller, [*wanted, *key_wanted(bucket, key, self._settings, writes=action == "PutObject")])

    @staticmethod
    def _authorize(caller: Caller, wanted: list[Wanted]) -> None:
        first = wanted[0]
        try:
            authorization.require_way(caller, "s3", first.action, first.resource, first.context)
            for one in wanted:
                authorization.authorize(caller, one.action, one.resource, one.context)
        except (AccessDenied, NoWay) as error:
            raise ObjectStoreError(f"ClientError: {error.code}: {error}") from None

    def _objects(self, bucket: str) -> dict[str, FakeKey]:
        """The bucket's current objects by key; nothing if there is no such bucket."""
        try:
            versions = self._backend.get_bucket(bucket).keys
        except MissingBucket:
            return {}
        # list() of the keys first: other threads add objects while this one reads.
        current = {name: versions.get(name) for name in list(dict.keys(versions))}
        return {name: key for name, key in current.items() if isinstance(key, FakeKey)}  # the rest is deleted

    def _prefix_objects(self, uri: str) -> Iterable[tuple[FakeKey, str]]:
        bucket, prefix = split(uri)
        for name, key in sorted(self._objects(bucket).items()):
            if not name.startswith(prefix) or name.endswith("/"):
                continue
            below = prefix == "" or prefix.endswith("/") or name.startswith(prefix + "/")
            yield key, name[len(prefix) :].lstrip("/") if below else name[prefix.rfind("/") + 1 :]

    def _manifest_objects(self, uri: str, caller: Caller) -> list[tuple[FakeKey, str]]:
        try:
            manifest = json.loads(self.read(uri, caller=caller))
            start, *names = manifest
            prefix: str = start["prefix"]
            if not all(isinstance(name, str) for name in names):
                raise TypeError
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ObjectStoreError(
                f'ClientError: the manifest "{uri}" is not of the form [{{"prefix": "s3://bucket/folder/"}}, "key 1", "key 2", ...]'
            ) from None
        self._authorize_list(caller, prefix)
        bucket, start_key = split(prefix)
        objects = self._objects(bucket)
        missing = [name for name in names if start_key + name not in objects]
        if missing or not names:
            shown = ", ".join(f'"{prefix}{name}"' for name in missing[:5]) or "any object"
            raise ObjectStoreError(f'ClientError: the manifest "{uri}" names {shown}, which S3 does not hold')
        return [(objects[start_key + name], name.lstrip("/")) for name in names]

    def _nothing_found(self, data_type: str, uri: str, caller: Caller) -> ObjectStoreError:
        return ObjectStoreError(
            f'ClientError: Data download failed:S3DataType:{data_type}. No S3 objects found under S3 URL "{uri}" given in input data '
            f"source. Please ensure that the bucket exists in the selected region ({self._settings.region}), that objects exist under "
            f'that S3 prefix, and that the role "{caller.principal}" has "s3:ListBucket" permissions on bucket "{split(uri)[0]}".'
        )


def split(uri: str) -> tuple[str, str]:
    """`s3://bucket/some/key` -> ("bucket", "some/key"). Raises ObjectStoreError for anything else."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not uri.startswith("s3://") or not bucket:
        raise ObjectStoreError(f'ClientError: "{uri}" is not an S3 URI; it has the form s3://bucket/key')
    return bucket, key


def _meet_faults(operation: str, bucket: str, name: str) -> None:
    """Raises ObjectStoreError if a fault rule lets every attempt at this object fail."""
    try:
        faults.transfer(operation, name)
    except ServiceFault as fault:
        raise ObjectStoreError(
            f'ClientError: S3 answered {TRANSFER_ATTEMPTS} times to {operation} of "s3://{bucket}/{name}": {fault} '
            "Start the job again when S3 answers"
        ) from None


def _open(key: FakeKey) -> Any:
    """The content of an object as a file with its own position."""
    with key.lock:
        buffer = key._value_buffer
        if not getattr(buffer, "_rolled", True):
            return BytesIO(buffer._file.getvalue())  # small, and in memory
        if buffer.writable():
            buffer.flush()
        return Path(f"/proc/self/fd/{buffer.fileno()}").open("rb")


def read_range(key: FakeKey, first: int, last: int) -> bytes:
    """An object's bytes from `first` to `last`, both included."""
    with _open(key) as file:
        file.seek(first)
        content: bytes = file.read(last - first + 1)
    return content


def copy_object(key: FakeKey, target: Path) -> None:
    """Write an object's content to the file `target`."""
    with _open(key) as source, target.open("wb") as file:
        if hasattr(source, "getvalue"):
            file.write(source.getvalue())
        else:
            _copy_file(source.fileno(), file.fileno())


def _copy_file(source: int, target: int) -> None:
    """Copy a whole file inside the kernel; a file system that can share blocks does not even copy."""
    left, position = os.fstat(source).st_size, 0
    while left > 0:
        try:
            count = os.copy_file_range(source, target, left, position, position)
        except OSError:  # across file systems on older kernels
            count = os.sendfile(target, source, position, left)
        position, left = position + count, left - count


def _private_copy(path: Path, folder: Path) -> Any:
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 -- it becomes the object, which closes it
    with path.open("rb") as source:
        shutil.copyfileobj(source, file, 2**20)
    file.flush()
    return file


def _behind_links(path: Path, root: Path) -> Path:
    """The file itself. Absolute links are read as the container saw them: /opt/ml is `root`."""
    for _ in range(40):
        if not path.is_symlink():
            break
        target = path.readlink()
        below_ml = target.is_relative_to("/opt/ml")
        path = root / target.relative_to("/opt/ml") if below_ml else path.parent / target
    if not path.resolve().is_relative_to(root.resolve()) or not path.is_file():
        raise ObjectStoreError(
            f'ClientError: the link "{path.name}" in an output does not lead to a file below /opt/ml; write the file itself'
        )
    return path


def _etag(file: Any) -> str:
    """The MD5 of a small file; for a large one what S3 gives a multipart upload, `<MD5 of the parts' MD5s>-<parts>`."""
    size = os.fstat(file.fileno()).st_size
    if size == 0:
        return hashlib.md5(b"", usedforsecurity=False).hexdigest()
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content, memoryview(content) as view:

        def digest(start: int) -> bytes:
            with view[start : start + PART_BYTES] as part:
                return hashlib.md5(part, usedforsecurity=False).digest()

        starts = range(0, size, PART_BYTES)
        if len(starts) == 1:
            return digest(0).hex()
        with ThreadPoolExecutor() as pool:
            digests = list(pool.map(digest, starts))
    return f"{hashlib.md5(b''.join(digests), usedforsecurity=False).hexdigest()}-{len(digests)}"
