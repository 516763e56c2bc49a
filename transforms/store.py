"""The sink: named objects that are created whole and never changed, in a local directory or in an S3 bucket.

`open_store` opens one, `Retrying` waits for one that fails. The only module that talks to S3.
"""

from __future__ import annotations

import errno
import os
import random as random_module
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

import boto3
from botocore import exceptions as boto
from botocore.config import Config

T = TypeVar("T")

# --- interface --------------------------------------------------------------------------------------------------------


class StoreError(Exception):
    """An operation on a store failed. One line: what was expected, what was there, and what to do."""


class NotFound(StoreError):  # noqa: N818
    """Nothing has this path."""


class FatalStoreError(StoreError):
    """It will fail again until the job is started differently: no such bucket, a file where a directory should be."""


class RetryableStoreError(StoreError):
    """It may pass by itself or by an operator: throttling, a server's or a network's failure, a full disk."""


class DeniedStoreError(RetryableStoreError):
    """Access denied, read-only, no valid credentials: a mistake at a start; later an operator may put it right."""


class UnknownOutcome(RetryableStoreError):  # noqa: N818
    """The answer to a create was lost: the object may be there, or may yet appear, or not."""


class Entry(NamedTuple):
    """One object of a listing; `size` in bytes."""

    path: str
    size: int


class Store(ABC):
    """A flat set of objects. Paths are relative and "/"-separated; parts that begin with "." are never used nor shown.

    Any operation raises the StoreErrors above, or ValueError for a path that is none. One store serves one thread.
    """

    url: str
    """Where it is, for messages: "s3://bucket/prefix" or a directory."""

    @abstractmethod
    def create(self, path: str, data: bytes) -> bool:
        """Creates an object, whole and durable, and returns True; or returns False when the name is taken.

        Never over another: of any number of writers of a name, one gets True. Raises UnknownOutcome when it can't be
        known whether the object was created; after any other error it was not.
        """

    @abstractmethod
    def read(self, path: str) -> bytes:
        """The bytes of an object. Raises NotFound."""

    @abstractmethod
    def list(self, prefix: str, after: str = "") -> Iterator[Entry]:
        """The objects whose paths begin with `prefix` and sort after `after`, in the order of their whole paths.

        Lazy: reading the first few of a million costs one page. What is created meanwhile may be missing.
        """

    @abstractmethod
    def list_dirs(self, directory: str = "") -> Sequence[str]:
        """The names, sorted, of what has objects beneath it directly in `directory` ("" is the top)."""

    @abstractmethod
    def delete(self, path: str) -> None:
        """Removes an object; no error when there is none."""

    @abstractmethod
    def check(self, *, write: bool = True) -> None:
        """Raises StoreError unless the store can be listed and, with `write`, written without overwriting.

        For a start: it says at once what would fail later. With `write` a local directory is made if it isn't there,
        and an S3 prefix gets a small object `_check`.
        """

    def close(self) -> None:  # noqa: B027
        """Releases connections; the store is not used afterwards."""


def _checked(path: str) -> str:
    if not path or any(part == "" or part.startswith(".") for part in path.split("/")):
        raise ValueError(f"expected a relative path without empty or hidden parts, got {path!r}")
    return path


def _hidden(path: str) -> bool:
    return path.startswith(".") or "/." in path


def _directory(path: str) -> str:
    """ "" for the top, else the directory's path with a "/" at its end."""
    path = path.strip("/")
    return path + "/" if path else ""


# --- a local directory ------------------------------------------------------------------------------------------------

_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_FATAL = {errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}
_ADVICE = {
    errno.ENOTDIR: "a file is where a directory should be: move it away or choose another output",
    errno.EACCES: "give the job's user the right to read and write there",
    errno.EPERM: "give the job's user the right to write there, on a file system that has hard links",
    errno.EROFS: "mount it writable or choose another output",
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "raise the quota or free some space",
}


def _from_os_error(what: str, error: OSError) -> StoreError:
    number = error.errno or 0
    # What is not known to be for good may pass: EIO, ESTALE, EMFILE, ENOSPC, ...
    kind = DeniedStoreError if number in _DENIED else FatalStoreError if number in _FATAL else RetryableStoreError
    advice = f"; {_ADVICE[number]}" if number in _ADVICE else ""
    return kind(f"{what}: {error.strerror or error}{advice}")


class LocalStore(Store):
    """A directory. An object appears under its name when its bytes are on disk, by a hard link, or not at all.

    Where the file system can (ext4, xfs, btrfs, tmpfs), the bytes are written to a file without a name, so that a crash
    leaves nothing behind; elsewhere (NFS) to a hidden one, which a crash may leave, unseen, beside the others.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.url = os.path.abspath(root)

    def create(self, path: str, data: bytes) -> bool:
        target = self._local(path)
        directory = os.path.dirname(target)
        try:
            _make_directory(directory)
            directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                created = _publish(directory_fd, os.path.basename(target), data)
                # Also when the name is taken: the caller will rely on what another put there a moment ago.
                _sync_name(directory_fd, target)
                return created
            finally:
                os.close(directory_fd)
        except OSError as error:
            raise _from_os_error(f"can't create {target}", error) from error

    def read(self, path: str) -> bytes:
        target = self._local(path)
        try:
            with open(target, "rb") as file:
                return file.read()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise NotFound(f"expected a file {target}, but there is none") from error
        except OSError as error:
            raise _from_os_error(f"can't read {target}", error) from error

    def list(self, prefix: str, after: str = "") -> Iterator[Entry]:
        start = prefix.rpartition("/")[0]
        return self._walk(start + "/" if start else "", prefix, after)

    def _walk(self, directory: str, prefix: str, after: str) -> Iterator[Entry]:
        """`directory` is "" or ends in "/". A directory sorts with its "/", as its paths do: "a-b" < "a/b" < "a0"."""
        for path in sorted(directory + name for name in self._names(directory)):
            if path.endswith("/"):
                may_match = path.startswith(prefix) or prefix.startswith(path)
                if may_match and (path > after or after.startswith(path)):
                    yield from self._walk(path, prefix, after)
            elif path.startswith(prefix) and path > after:
                try:
                    yield Entry(path, os.stat(os.path.join(self.url, path)).st_size)
                except FileNotFoundError:
                    continue  # deleted since
                except OSError as error:
                    raise _from_os_error(f"can't list {self.url}/{path}", error) from error

    def _names(self, directory: str) -> Sequence[str]:
        """What is in a directory, not sorted, without what is hidden; directories end in "/"."""
        if _hidden(directory):
            return []
        try:
            with os.scandir(os.path.join(self.url, directory)) as entries:
                return [e.name + "/" if e.is_dir() else e.name for e in entries if not e.name.startswith(".")]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise _from_os_error(f"can't list {self.url}/{directory}", error) from error

    def list_dirs(self, directory: str = "") -> Sequence[str]:
        # An empty directory, such as a crash may leave, is not there: as in S3.
        start = _directory(directory)
        names = sorted(name[:-1] for name in self._names(start) if name.endswith("/"))
        return [name for name in names if any(self._walk(f"{start}{name}/", "", ""))]

    def delete(self, path: str) -> None:
        target = self._local(path)
        try:
            os.unlink(target)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise _from_os_error(f"can't delete {target}", error) from error

    def check(self, *, write: bool = True) -> None:
        try:
            if write:
                _make_directory(self.url)
            directory_fd = os.open(self.url, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.listdir(directory_fd)
                if write:
                    probe = f".check-{secrets.token_hex(8)}"
                    _publish(directory_fd, probe, b"")
                    os.unlink(probe, dir_fd=directory_fd)
            finally:
                os.close(directory_fd)
        except FileNotFoundError as error:
            raise FatalStoreError(f"expected a directory {self.url}, but there is none; check its name") from error
        except OSError as error:
            does = "reads and writes" if write else "reads"
            raise _from_os_error(f"expected a directory that the job {does}: {self.url}", error) from error

    def _local(self, path: str) -> str:
        return os.path.join(self.url, _checked(path))


def _make_directory(directory: str) -> None:
    if os.path.isdir(directory):
        return
    parent = os.path.dirname(directory)
    _make_directory(parent)
    try:
        os.mkdir(directory)
    except FileExistsError:
        if not os.path.isdir(directory):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), directory) from None
    parent_fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(parent_fd)
    finally:
        os.close(parent_fd)


def _publish(directory_fd: int, name: str, data: bytes) -> bool:
    """Links a file with these bytes, which are on disk, into the directory; False when the name is taken."""
    hidden = f".tmp-{secrets.token_hex(8)}"
    fd = _open_nameless(directory_fd)
    if fd is None:
        fd = os.open(hidden, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666, dir_fd=directory_fd)
    else:
        hidden = ""
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest) :]
        os.fsync(fd)
        if hidden:
            os.link(hidden, name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
        else:
            os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=directory_fd)  # follows the link: open(2), O_TMPFILE
        return True
    except FileExistsError:
        return False
    finally:
        os.close(fd)
        if hidden:
            os.unlink(hidden, dir_fd=directory_fd)


def _open_nameless(directory_fd: int) -> int | None:
    """A file in the directory that has no name yet; None where the system or the file system has no such thing."""
    flag: int = getattr(os, "O_TMPFILE", 0)
    if not flag or not os.path.isdir("/proc/self/fd"):
        return None
    try:
        return os.open(".", flag | os.O_WRONLY, 0o666, dir_fd=directory_fd)
    except OSError as error:
        if error.errno in {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}:
            return None
        raise


def _sync_name(directory_fd: int, target: str) -> None:
    try:
        os.fsync(directory_fd)
    except OSError as error:
        raise UnknownOutcome(f"{target} may not survive a crash: {error.strerror}") from error


# --- an S3 bucket -----------------------------------------------------------------------------------------------------

# Error codes of S3 and of servers like it: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
_NOT_DONE = {"SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "TooManyRequestsException",
             "RequestLimitExceeded", "BandwidthLimitExceeded", "ConditionalRequestConflict", "OperationAborted",
             "IncompleteBody", "BadDigest", "RequestTimeout", "QuotaExceeded", "XMinioStorageFull"}  # fmt: skip
_CREDENTIALS = {"ExpiredToken", "TokenRefreshRequired", "InvalidToken", "RequestTimeTooSkewed", "InvalidAccessKeyId",
                "SignatureDoesNotMatch", "RequestExpired", "ExpiredTokenException"}  # fmt: skip
_NO_CREDENTIALS = (
    boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError, boto.NoAuthTokenError,
    boto.TokenRetrievalError, boto.SSOError, boto.LoginError, boto.MetadataRetrievalError,
)  # fmt: skip
_NEVER_SENT = (boto.EndpointConnectionError, boto.ConnectTimeoutError, boto.ProxyConnectionError)
_LOST = (
    boto.HTTPClientError, boto.ConnectionError, boto.IncompleteReadError, boto.ChecksumError,
    boto.FlexibleChecksumError,
)  # fmt: skip
_TAKEN = {"PreconditionFailed", "412"}
_MISSING = {"NoSuchKey", "404", "NotFound"}

_PROBE = "_check"
_PROBE_DATA = b"Written by a start of the job, which tests whether this destination refuses to overwrite.\n"


class S3Store(Store):
    """A prefix of a bucket of S3, or of a server that honours `If-None-Match: *` as S3 does.

    Every call is one request: with retries of botocore's own, a create whose first answer was lost would find its own
    object and say that the name is taken. `Retrying` retries, and knows. After an error with the credentials the next
    call loads them anew.

    endpoint: URL of a server that is not AWS's; addressed by path ("endpoint/bucket/key").
    storage_class: of what is created, such as "STANDARD_IA"; None is the bucket's own.
    read_timeout: seconds without a byte after which an answer counts as lost; connect_timeout likewise.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint: str | None = None,
        region: str | None = None,
        profile: str | None = None,
        storage_class: str | None = None,
        connect_timeout: float = 5.0,
        read_timeout: float = 30.0,
    ) -> None:
        self._bucket = bucket
        self._prefix = _directory(prefix)
        self.url = f"s3://{bucket}/{self._prefix}".rstrip("/")
        self._endpoint, self._region, self._profile = endpoint, region, profile
        self._extra = {"StorageClass": storage_class} if storage_class else {}
        self._config = Config(
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
            retries={"total_max_attempts": 1},
            tcp_keepalive=True,
            s3={"addressing_style": "path" if endpoint else "auto"},
            # The CRC trailers that are botocore's default are refused by many servers that are not AWS's.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        self._opened: Any = None

    @property
    def _client(self) -> Any:
        if self._opened is None:
            session = boto3.session.Session(profile_name=self._profile, region_name=self._region)
            self._opened = session.client("s3", endpoint_url=self._endpoint, config=self._config)
        return self._opened

    def create(self, path: str, data: bytes) -> bool:
        key = self._key(path)
        try:
            self._client.put_object(
                Bucket=self._bucket, Key=key, Body=data, IfNoneMatch="*", ContentType=_content_type(path), **self._extra
            )
        except (boto.ClientError, boto.BotoCoreError, ValueError) as error:
            if _code(error) in _TAKEN:
                return False
            raise self._error(f"can't create {self._bucket}/{key}", error, writes=True) from error
        return True

    def read(self, path: str) -> bytes:
        key = self._key(path)
        try:
            data: bytes = self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()
        except (boto.ClientError, boto.BotoCoreError, ValueError) as error:
            if _code(error) in _MISSING:
                raise NotFound(f"expected an object {self._bucket}/{key}, but there is none") from error
            raise self._error(f"can't read {self._bucket}/{key}", error) from error
        return data

    def list(self, prefix: str, after: str = "") -> Iterator[Entry]:
        for page in self._pages(prefix, StartAfter=self._prefix + after if after else ""):
            for item in page.get("Contents", ()):
                path = item["Key"].removeprefix(self._prefix)
                # Consoles make a "directory" by an empty object whose key ends in "/".
                if not _hidden(path) and not path.endswith("/") and path:
                    yield Entry(path, item["Size"])

    def list_dirs(self, directory: str = "") -> Sequence[str]:
        start = _directory(directory)
        found = (
            item["Prefix"].removeprefix(self._prefix + start).rstrip("/")
            for page in self._pages(start, Delimiter="/")
            for item in page.get("CommonPrefixes", ())
        )
        return sorted(name for name in found if name and not _hidden(name))

    def _pages(self, prefix: str, **extra: Any) -> Iterator[Any]:
        try:
            pages = self._client.get_paginator("list_objects_v2")
            yield from pages.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix, **extra)
        except (boto.ClientError, boto.BotoCoreError, ValueError) as error:
            raise self._error(f"can't list {self._bucket}/{self._prefix}{prefix}", error) from error

    def delete(self, path: str) -> None:
        key = self._key(path)
        try:
            self._client.delete_object(Bucket=self._bucket, Key=key)
        except (boto.ClientError, boto.BotoCoreError, ValueError) as error:
            if _code(error) not in _MISSING:
                raise self._error(f"can't delete {self._bucket}/{key}", error) from error

    def check(self, *, write: bool = True) -> None:
        try:
            self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)
        except (boto.ClientError, boto.BotoCoreError, ValueError) as error:
            raise self._error(f"expected a bucket that the job can list, {self.url}", error) from error
        if write and self.create(_PROBE, _PROBE_DATA) and self.create(_PROBE, _PROBE_DATA):
            raise FatalStoreError(
                f"expected a store that honours If-None-Match, but {self._endpoint or 'S3'} overwrote "
                f"{self.url}/{_PROBE}; use one that has conditional writes"
            )

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _key(self, path: str) -> str:
        return self._prefix + _checked(path)

    def _error(self, what: str, error: Exception, *, writes: bool = False) -> StoreError:
        kind, advice = _classify(error, writes=writes)
        if issubclass(kind, DeniedStoreError):
            self.close()  # so that the next call loads the credentials anew
        return kind(f"{what}: {_said(error)}" + (f"; {advice}" if advice else ""))


def _code(error: Exception) -> str:
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, boto.ClientError) else ""


def _said(error: Exception) -> str:
    """What an error says, in one line, without what botocore puts around a server's answer."""
    if isinstance(error, boto.ClientError):
        return f"{_code(error)} {' '.join(error.response.get('Error', {}).get('Message', '').split())}".rstrip()
    return " ".join(str(error).split())


def _classify(error: Exception, *, writes: bool) -> tuple[type[StoreError], str]:
    """The kind of StoreError that an error of boto's is, and what to do about it ("": nothing to say).

    writes: the request was a create, so that an answer that was lost or is vague leaves open whether it was done.
    """
    lost: type[StoreError] = UnknownOutcome if writes else RetryableStoreError
    if isinstance(error, _NO_CREDENTIALS):
        return DeniedStoreError, "set credentials (environment, profile or role) for the job"
    if isinstance(error, _NEVER_SENT):
        return RetryableStoreError, "check the endpoint and the network"
    if isinstance(error, _LOST):
        return lost, ""
    if not isinstance(error, boto.ClientError):
        return FatalStoreError, "check bucket, endpoint, region and profile"  # botocore refused the request itself
    code = _code(error)
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code in _NOT_DONE or status == 429:
        return RetryableStoreError, ""
    if code in _CREDENTIALS:
        return DeniedStoreError, "renew the credentials, and check the clock"
    if code == "NotImplemented":
        return FatalStoreError, "use a server that has conditional writes"
    if code == "NoSuchBucket":
        return FatalStoreError, "create the bucket or correct its name"
    if code in {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}:
        return FatalStoreError, "set the bucket's region"
    if status in {401, 403}:
        return DeniedStoreError, "give the job's credentials the rights to list, read, write and delete there"
    if status >= 500 or status in {0, 408}:
        return lost, ""
    return FatalStoreError, "check bucket, endpoint, region and storage class"


def _content_type(path: str) -> str:
    return "application/gzip" if path.endswith(".gz") else "application/octet-stream"


# --- retries ----------------------------------------------------------------------------------------------------------

_REPORT_EVERY = 10  # failures; 1.4 minutes the first time, 5 minutes from then on
_SLICE = 0.25  # seconds between two looks at `stop` during a pause


class Retrying(Store):
    """A store that waits while another fails: an operation is repeated until it works, fails for good, or is stopped.

    A create whose outcome is unknown is tried again under the same condition; when the name is then taken, the object
    is read, and if its bytes are ours, it is ours. `check` is not repeated: at a start an error is to be seen at once.

    report: gets one line at the first failure of an operation, then at every tenth, and when it works again.
    stop: asked before and during each pause; True gives up, with the last error (UnknownOutcome if any try had one).
    retry_unknown: False raises UnknownOutcome at once, for a caller who would rather lose than repeat.
    attempts: tries of one operation before giving up; None is without end.
    first_delay, max_delay: seconds; the pause doubles from one to the other, and is shortened by up to half at random.
    """

    def __init__(
        self,
        store: Store,
        *,
        report: Callable[[str], None] = lambda message: None,
        stop: Callable[[], bool] = lambda: False,
        retry_unknown: bool = True,
        attempts: int | None = None,
        first_delay: float = 0.2,
        max_delay: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        random: Callable[[], float] = random_module.random,
    ) -> None:
        self.url = store.url
        self._store = store
        self._report = report
        self._stop = stop
        self._retry_unknown = retry_unknown
        self._attempts = attempts
        self._first_delay, self._max_delay = first_delay, max_delay
        self._clock, self._sleep, self._random = clock, sleep, random

    def create(self, path: str, data: bytes) -> bool:
        unknown = False

        def attempt() -> bool:
            nonlocal unknown
            try:
                return self._store.create(path, data) or (unknown and self._holds(path, data))
            except UnknownOutcome:
                unknown = True
                raise

        try:
            return self._retry(attempt)
        except StoreError as error:
            if unknown and not isinstance(error, UnknownOutcome):
                raise UnknownOutcome(f"an earlier try may have worked; {error}") from error
            raise

    def _holds(self, path: str, data: bytes) -> bool:
        try:
            return self._store.read(path) == data
        except NotFound:
            return False

    def read(self, path: str) -> bytes:
        return self._retry(lambda: self._store.read(path))

    def list(self, prefix: str, after: str = "") -> Iterator[Entry]:
        entries = self._store.list(prefix, after)

        def following() -> Entry | None:
            nonlocal entries
            try:
                return next(entries, None)
            except RetryableStoreError:
                entries = self._store.list(prefix, after)  # go on after the last that was given out
                raise

        while entry := self._retry(following):
            after = entry.path
            yield entry

    def list_dirs(self, directory: str = "") -> Sequence[str]:
        return self._retry(lambda: self._store.list_dirs(directory))

    def delete(self, path: str) -> None:
        self._retry(lambda: self._store.delete(path))

    def check(self, *, write: bool = True) -> None:
        self._store.check(write=write)

    def close(self) -> None:
        self._store.close()

    def _retry(self, operation: Callable[[], T]) -> T:
        failures, since = 0, self._clock()
        while True:
            try:
                result = operation()
            except RetryableStoreError as error:
                failures += 1
                if isinstance(error, UnknownOutcome) and not self._retry_unknown:
                    raise
                if failures == 1:
                    self._report(f"{error}; trying again")
                elif failures % _REPORT_EVERY == 0:
                    self._report(f"{error}; {failures} failures in {self._clock() - since:.0f} s, trying again")
                if failures == self._attempts or not self._pause(failures):
                    raise
            else:
                if failures:
                    self._report(f"{self.url} works again after {failures} failures in {self._clock() - since:.0f} s")
                return result

    def _pause(self, failures: int) -> bool:
        """Waits before the next try; False when there is to be none."""
        delay = min(self._max_delay, self._first_delay * 2.0 ** min(failures - 1, 30)) * (1 - self._random() / 2)
        until = self._clock() + delay
        while not self._stop():
            left = until - self._clock()
            if left <= 0:
                return True
            self._sleep(min(left, _SLICE))
        return False


# --- opening ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoreConfig:
    """Where the sink is, without its credentials: what a job graph carries, and a worker opens.

    output: "s3://bucket/prefix", a directory, or its file:// URL.
    endpoint, region, profile, storage_class: as for S3Store; nothing to a directory.
    Raises ValueError, in one line, for an output or an endpoint that is none.
    """

    output: str
    endpoint: str | None = None
    region: str | None = None
    profile: str | None = None
    storage_class: str | None = None

    def __post_init__(self) -> None:
        _parse_output(self.output)
        if self.endpoint is not None and not self.endpoint.startswith(("http://", "https://")):
            raise ValueError(f"expected an endpoint like https://host:port, got {self.endpoint!r}")

    def open(self) -> Store:
        """A store without retries. It connects at its first use."""
        bucket, path = _parse_output(self.output)
        if not bucket:
            return LocalStore(path)
        return S3Store(
            bucket,
            path,
            endpoint=self.endpoint,
            region=self.region,
            profile=self.profile,
            storage_class=self.storage_class,
        )


def open_store(
    output: str,
    *,
    endpoint: str | None = None,
    region: str | None = None,
    profile: str | None = None,
    storage_class: str | None = None,
) -> Store:
    """The store of an output, as StoreConfig describes it. Raises ValueError, in one line, for one that is none."""
    return StoreConfig(output, endpoint, region, profile, storage_class).open()


def _parse_output(output: str) -> tuple[str, str]:
    """Bucket and prefix, or "" and a directory."""
    if "://" not in output:
        if not output.strip():
            raise ValueError("expected a directory or s3://bucket/prefix as output, got an empty string")
        return "", os.path.expanduser(output)
    parts = urlsplit(output)
    if "@" in parts.netloc:
        raise ValueError("expected an output without credentials; set them in the environment or in a profile")
    if parts.scheme == "file" and parts.netloc in {"", "localhost"} and parts.path:
        return "", unquote(parts.path)
    if parts.scheme == "s3" and parts.netloc and not parts.query and not parts.fragment:
        prefix = parts.path.strip("/")
        if prefix:
            _checked(prefix)
        return parts.netloc, prefix
    raise ValueError(f"expected a directory, file:///directory or s3://bucket/prefix as output, got {output!r}")
