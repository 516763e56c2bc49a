"""The sink, locally and on a real S3 server: one object a name, whole or not at all, and errors that say what to do."""

import errno
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms import store as store_module
from transforms.store import (
    DeniedStoreError,
    Entry,
    FatalStoreError,
    LocalStore,
    NotFound,
    RetryableStoreError,
    Retrying,
    S3Store,
    Store,
    StoreConfig,
    StoreError,
    UnknownOutcome,
    open_store,
)


@pytest.fixture
def credentials(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.real)])
def open_one(request, tmp_path, monkeypatch):
    """Opens a store of the same destination each time it is called."""
    if request.param == "local":
        return lambda: LocalStore(tmp_path / "out")
    request.getfixturevalue("credentials")
    s3, bucket = request.getfixturevalue("s3"), request.getfixturevalue("bucket")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)
    return lambda: S3Store(bucket, "some/prefix", endpoint=s3.endpoint)


@pytest.fixture
def store(open_one) -> Store:
    return open_one()


# --- both -------------------------------------------------------------------------------------------------------------


def test_what_was_created_is_read(store):
    assert store.create("a/b/c.bin", b"\x00data") is True
    assert store.read("a/b/c.bin") == b"\x00data"


def test_an_empty_object_is_one(store):
    assert store.create("empty", b"") is True
    assert store.read("empty") == b""
    assert list(store.list("")) == [Entry("empty", 0)]


def test_a_taken_name_keeps_its_bytes(store):
    store.create("a", b"first")
    assert store.create("a", b"second") is False
    assert store.read("a") == b"first"


def test_one_of_four_writers_of_a_name_wins_in_each_of_thirty_races(open_one):
    writers = [open_one() for _ in range(4)]
    barrier = threading.Barrier(4)

    def race(writer: int, name: str) -> bool:
        barrier.wait()
        return writers[writer].create(name, b"writer %d" % writer * 1000)

    with ThreadPoolExecutor(4) as pool:
        for number in range(30):
            name = f"races/{number:02d}"
            won = list(pool.map(race, range(4), [name] * 4))
            assert won.count(True) == 1
            assert writers[0].read(name) == b"writer %d" % won.index(True) * 1000


def test_what_is_not_there_is_not_found(store):
    store.create("a/b", b"")
    for path in ("b", "a", "a/c", "a/b/c"):
        with pytest.raises(NotFound, match="but there is none"):
            store.read(path)


def test_a_deleted_object_is_gone_and_deleting_again_is_no_error(store):
    store.create("a/b", b"x")
    store.delete("a/b")
    store.delete("a/b")
    store.delete("never/there")
    with pytest.raises(NotFound):
        store.read("a/b")
    assert list(store.list("")) == []
    assert list(store.list_dirs()) == []


def test_a_deleted_name_is_free(store):
    store.create("a", b"first")
    store.delete("a")
    assert store.create("a", b"second") is True


PATHS = ["a-b", "a/b", "a/b-c/d", "a/b/c/d", "a0", "b/é", "b/z"]


@pytest.fixture
def filled(store):
    for path in PATHS:
        if path != "a/b":  # a file, where others need a directory
            store.create(path, path.encode())
    return store


def test_a_listing_is_in_the_order_of_whole_paths_with_sizes(filled):
    expected = sorted(path for path in PATHS if path != "a/b")
    assert [*filled.list("")] == [Entry(path, len(path.encode())) for path in expected]


@pytest.mark.parametrize("prefix", ["", "a", "a/", "a/b", "a/b/", "a/b-", "b", "c", "b/z"])
@pytest.mark.parametrize("after", ["", "a", "a-b", "a/", "a/b", "a/b-c", "a/b-c/d", "a/b/c/d", "b/", "z"])
def test_a_listing_has_what_begins_with_the_prefix_and_sorts_after(filled, prefix, after):
    expected = sorted(path for path in PATHS if path != "a/b" and path.startswith(prefix) and path > after)
    assert [entry.path for entry in filled.list(prefix, after)] == expected


def test_directories_are_listed_by_name(filled):
    assert [*filled.list_dirs()] == ["a", "b"]
    assert [*filled.list_dirs("a")] == ["b", "b-c"]
    assert [*filled.list_dirs("a/")] == ["b", "b-c"]
    assert [*filled.list_dirs("c")] == []


def test_a_store_that_is_empty_lists_nothing(store):
    assert [*store.list("a/")] == []
    assert [*store.list_dirs("a")] == []


@pytest.mark.parametrize("path", ["", "/a", "a/", "a//b", ".a", "a/.b", "..", "a/../b", "."])
def test_a_path_that_is_hidden_or_leads_elsewhere_is_refused(store, path):
    for operation in (lambda: store.create(path, b""), lambda: store.read(path), lambda: store.delete(path)):
        with pytest.raises(ValueError, match="expected a relative path"):
            operation()


def test_a_check_of_a_good_destination_passes_again_and_again(store):
    store.check()
    store.check()
    store.check(write=False)
    assert [*store.list("cluster=")] == []


def test_a_listing_of_more_than_a_page_is_whole(store, request):
    count = 1100 if "s3" in request.node.callspec.id else 50
    paths = [f"many/{number:05d}" for number in range(count)]
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda path: store.create(path, b"x"), paths))
    assert [entry.path for entry in store.list("many/")] == paths


# --- local ------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["without a name", "under a hidden one"])
def local(request, tmp_path, monkeypatch):
    if request.param == "under a hidden one":
        monkeypatch.setattr(store_module, "_open_nameless", lambda directory_fd: None)
    return LocalStore(tmp_path / "out")


def test_a_file_is_published_and_nothing_is_left_beside_it(local):
    assert local.create("a/b", b"data") is True
    assert local.create("a/b", b"other") is False
    assert local.read("a/b") == b"data"
    assert os.listdir(Path(local.url, "a")) == ["b"]


def test_a_file_has_the_rights_that_the_umask_gives(local):
    old = os.umask(0o027)
    try:
        local.create("a", b"")
    finally:
        os.umask(old)
    assert Path(local.url, "a").stat().st_mode & 0o777 == 0o640


def test_a_file_system_without_nameless_files_is_noticed(tmp_path, monkeypatch):
    real = os.open

    def without(path, flags, *args, **kwargs):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", without)
    store = LocalStore(tmp_path)
    assert store.create("a", b"data") is True
    assert os.listdir(tmp_path) == ["a"]


def test_hidden_files_are_not_shown(tmp_path):
    store = LocalStore(tmp_path)
    store.create("a/b", b"")
    Path(tmp_path, ".tmp-1").touch()
    Path(tmp_path, "a", ".tmp-2").touch()
    Path(tmp_path, ".hidden").mkdir()
    Path(tmp_path, ".hidden", "c").touch()
    assert [entry.path for entry in store.list("")] == ["a/b"]
    assert [entry.path for entry in store.list(".hidden/")] == []
    assert [*store.list_dirs()] == ["a"]
    assert [*store.list_dirs("..")] == []


def test_a_writer_that_is_killed_leaves_whole_files_and_nothing_else(tmp_path):
    script = """
        import sys
        from transforms.store import LocalStore
        store = LocalStore(sys.argv[1])
        store.create("dir/first", b"x" * 1_000_000)
        print("ready", flush=True)
        for number in range(10**9):
            store.create(f"dir/{number:09d}", b"x" * 1_000_000)
    """
    for kill in range(5):
        root = tmp_path / str(kill)
        writer = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script), root], stdout=subprocess.PIPE)
        assert writer.stdout.readline() == b"ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            writer.wait(0.02 + 0.03 * kill)
        writer.kill()
        writer.wait()
        writer.stdout.close()
        assert {entry.size for entry in LocalStore(root).list("")} == {1_000_000}
        assert [name for name in os.listdir(root / "dir") if name.startswith(".")] == []


def test_bytes_and_name_are_synced_before_a_create_returns(tmp_path, monkeypatch):
    store = LocalStore(tmp_path / "out")
    synced = []
    real = os.fsync

    def fsync(fd):
        synced.append(os.readlink(f"/proc/self/fd/{fd}").removeprefix(str(tmp_path)))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    store.create("a/b", b"data")
    file, *names = [name for name in synced if "#" in name], *[name for name in synced if "#" not in name]
    assert len(file) == 1
    assert names == ["", "/out", "/out/a"]  # each new directory's own name, and then the file's
    synced.clear()
    store.create("a/b", b"data")
    assert synced[-1] == "/out/a"  # another's name too


def test_a_name_that_may_not_be_on_disk_is_an_unknown_outcome_and_the_next_try_settles_it(tmp_path, monkeypatch):
    store = LocalStore(tmp_path)
    real, fail = os.fsync, [False, True]

    def fsync(fd):
        if fail and fail.pop(0):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(UnknownOutcome):
        store.create("a", b"data")
    fail[:] = [False, True]
    assert retrying(store).create("b", b"data") is True


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, RetryableStoreError),
        (errno.EDQUOT, RetryableStoreError),
        (errno.EIO, RetryableStoreError),
        (errno.EACCES, DeniedStoreError),
        (errno.EROFS, DeniedStoreError),
        (errno.ENAMETOOLONG, FatalStoreError),
    ],
)
def test_what_the_system_says_tells_whether_to_try_again(tmp_path, monkeypatch, number, kind):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "write", fail)
    store = LocalStore(tmp_path)
    with pytest.raises(StoreError) as error:
        store.create("a", b"data")
    assert type(error.value) is kind
    assert os.strerror(number) in str(error.value)
    assert "\n" not in str(error.value)
    assert [*store.list("")] == []
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    real = os.write

    def write(fd, data):
        if len(data) > 3:
            return real(fd, data[:3])  # a short write, and then the disk is full
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(RetryableStoreError, match="free some space"):
        LocalStore(tmp_path).create("a", b"123456")
    assert os.listdir(tmp_path) == []


def test_a_file_where_a_directory_should_be_is_said_at_the_start(tmp_path):
    Path(tmp_path, "file").touch()
    for root in ("file", "file/out"):
        for write in (True, False):
            with pytest.raises(FatalStoreError, match="a file is where a directory should be"):
                LocalStore(tmp_path / root).check(write=write)
    with pytest.raises(FatalStoreError, match="a file is where a directory should be"):
        LocalStore(tmp_path).create("file/a", b"")


def test_a_check_for_writing_makes_the_directory_and_one_for_reading_does_not(tmp_path):
    store = LocalStore(tmp_path / "a" / "b")
    with pytest.raises(FatalStoreError, match="but there is none"):
        store.check(write=False)
    store.check()
    assert os.listdir(store.url) == []


def test_a_directory_that_is_read_only_is_said_at_the_start(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(store_module, "_publish", fail)
    with pytest.raises(DeniedStoreError, match="mount it writable"):
        LocalStore(tmp_path).check()


# --- S3 ---------------------------------------------------------------------------------------------------------------


class Scripted:
    """An HTTP server that answers each request by the next line of a script, and keeps what it was asked.

    A line is a status and an error code, a body for 200, or "drop" (closes the connection) or "hang" (never answers).
    """

    def __init__(self) -> None:
        self.script: list[tuple[int, str] | bytes | str] = []
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.over = threading.Event()
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                scripted.asked.append((self.command, self.path, dict(self.headers)))
                line = scripted.script.pop(0)
                if line == "hang":
                    scripted.over.wait(10)
                if isinstance(line, str):
                    self.close_connection = True
                    return
                status, body = 200, line
                if isinstance(line, tuple):
                    status = line[0]
                    body = f"<Error><Code>{line[1]}</Code><Message>told to</Message></Error>".encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_PUT = do_DELETE = do_HEAD = answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def scripted(credentials) -> Iterator[Scripted]:
    scripted = Scripted()
    thread = threading.Thread(target=scripted.server.serve_forever, args=(0.01,))
    thread.start()
    yield scripted
    scripted.over.set()
    scripted.server.shutdown()
    thread.join()
    scripted.server.server_close()


@pytest.fixture
def s3_store(scripted) -> Iterator[S3Store]:
    store = S3Store("bucket", "prefix", endpoint=scripted.endpoint, storage_class="STANDARD_IA", read_timeout=0.3)
    yield store
    store.close()


@pytest.mark.parametrize(
    ("answer", "created", "other"),
    [
        ((503, "SlowDown"), RetryableStoreError, RetryableStoreError),
        ((429, "TooManyRequests"), RetryableStoreError, RetryableStoreError),
        ((409, "ConditionalRequestConflict"), RetryableStoreError, RetryableStoreError),
        ((400, "RequestTimeout"), RetryableStoreError, RetryableStoreError),
        ((403, "QuotaExceeded"), RetryableStoreError, RetryableStoreError),
        ((500, "InternalError"), UnknownOutcome, RetryableStoreError),
        ((502, ""), UnknownOutcome, RetryableStoreError),
        ((504, "GatewayTimeout"), UnknownOutcome, RetryableStoreError),
        ("drop", UnknownOutcome, RetryableStoreError),
        ("hang", UnknownOutcome, RetryableStoreError),
        ((403, "AccessDenied"), DeniedStoreError, DeniedStoreError),
        ((400, "ExpiredToken"), DeniedStoreError, DeniedStoreError),
        ((403, "InvalidAccessKeyId"), DeniedStoreError, DeniedStoreError),
        ((404, "NoSuchBucket"), FatalStoreError, FatalStoreError),
        ((400, "AuthorizationHeaderMalformed"), FatalStoreError, FatalStoreError),
        ((400, "InvalidStorageClass"), FatalStoreError, FatalStoreError),
        ((501, "NotImplemented"), FatalStoreError, FatalStoreError),
    ],
    ids=str,
)
def test_what_the_server_says_tells_whether_to_try_again(scripted, s3_store, answer, created, other):
    operations = [
        (created, lambda: s3_store.create("a", b"data")),
        (other, lambda: s3_store.read("a")),
        (other, lambda: list(s3_store.list(""))),
        (other, lambda: s3_store.list_dirs()),
        (other, lambda: s3_store.delete("a")),
        (other, lambda: s3_store.check()),
    ]
    for kind, operation in operations:
        scripted.script[:] = [answer, answer]
        asked = len(scripted.asked)
        with pytest.raises(StoreError) as error:
            operation()
        assert type(error.value) is kind
        assert "\n" not in str(error.value)
        assert "bucket" in str(error.value)
        assert "secret" not in str(error.value)
        assert len(scripted.asked) <= asked + 1 or answer[1] == "AuthorizationHeaderMalformed"  # it asks for the region


def test_a_create_asks_for_a_new_name_with_its_type_and_storage_class(scripted, s3_store):
    scripted.script[:] = [b""]
    assert s3_store.create("a/b.pb.gz", b"data") is True
    method, path, headers = scripted.asked[0]
    assert (method, path) == ("PUT", "/bucket/prefix/a/b.pb.gz")
    assert headers["If-None-Match"] == "*"
    assert headers["Content-Type"] == "application/gzip"
    assert headers["x-amz-storage-class"] == "STANDARD_IA"
    assert not any("checksum" in name.lower() or "trailer" in name.lower() for name in headers)


def test_a_name_that_is_taken_is_no_error(scripted, s3_store):
    scripted.script[:] = [(412, "PreconditionFailed")]
    assert s3_store.create("a", b"data") is False


def test_a_server_that_is_not_there_has_surely_not_created_it(credentials):
    with pytest.raises(RetryableStoreError, match="check the endpoint") as error:
        S3Store("bucket", endpoint="http://127.0.0.1:9", connect_timeout=0.5).create("a", b"data")
    assert type(error.value) is RetryableStoreError


def test_a_server_that_overwrites_is_refused_at_the_start(scripted, s3_store):
    listing = b"<ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>"
    scripted.script[:] = [listing, b"", b""]
    with pytest.raises(FatalStoreError, match="honours If-None-Match"):
        s3_store.check()
    scripted.script[:] = [listing, b"", (412, "PreconditionFailed")]
    s3_store.check()
    scripted.script[:] = [listing, (412, "PreconditionFailed")]
    s3_store.check()
    scripted.script[:] = [listing]
    s3_store.check(write=False)


def test_a_right_that_is_missing_is_said_at_the_start(scripted, s3_store):
    listing = b"<ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>"
    scripted.script[:] = [listing, (403, "AccessDenied")]
    with pytest.raises(DeniedStoreError, match="the rights to list, read, write and delete"):
        s3_store.check()


def test_missing_credentials_are_said_at_the_start(credentials, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(DeniedStoreError, match="set credentials"):
        S3Store("bucket", endpoint="http://127.0.0.1:9").check()


def test_a_profile_that_is_not_there_is_said_at_the_start(credentials):
    with pytest.raises(FatalStoreError, match="nobody"):
        S3Store("bucket", profile="nobody").check()


@pytest.mark.parametrize("bucket", ["a b", "A/B"])
def test_a_bucket_name_that_is_none_is_said_at_the_start(credentials, bucket):
    with pytest.raises(FatalStoreError, match="check bucket"):
        S3Store(bucket, endpoint="http://127.0.0.1:9").check()


def test_renewed_credentials_are_used(scripted, s3_store, monkeypatch):
    scripted.script[:] = [(403, "ExpiredToken"), b""]
    with pytest.raises(DeniedStoreError, match="renew the credentials"):
        s3_store.create("a", b"")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "renewed")
    s3_store.create("a", b"")
    assert "Credential=renewed/" in scripted.asked[-1][2]["Authorization"]


def test_a_console_s_directory_marks_and_hidden_objects_are_not_shown(scripted, s3_store):
    item = "<Contents><Key>prefix/{}</Key><Size>1</Size></Contents>"
    listing = "".join(item.format(key) for key in ("", ".hidden", "a/", "a/.b", "a/c"))
    scripted.script[:] = [f"<ListBucketResult>{listing}</ListBucketResult>".encode()]
    assert [entry.path for entry in s3_store.list("")] == ["a/c"]


@pytest.mark.real
def test_a_wrong_bucket_and_wrong_keys_are_said_at_the_start(credentials, s3, bucket, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)
    with pytest.raises(FatalStoreError, match="create the bucket or correct its name"):
        S3Store("not-there", endpoint=s3.endpoint).check()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(DeniedStoreError, match="SignatureDoesNotMatch"):
        S3Store(bucket, endpoint=s3.endpoint).check()


# --- retries ----------------------------------------------------------------------------------------------------------


class Flaky(Store):
    """A store in memory that does as its script says before it works.

    An exception is raised before the operation, or, in a tuple, after it.
    """

    url = "flaky"

    def __init__(self, *script: StoreError | tuple[StoreError]) -> None:
        self.script, self.objects, self.calls = list(script), {}, 0

    def step(self, operation=lambda: None):
        self.calls += 1
        line = self.script.pop(0) if self.script else None
        if isinstance(line, StoreError):
            raise line
        result = operation()
        if line is not None:
            raise line[0]
        return result

    def create(self, path, data):
        return self.step(lambda: self.objects.setdefault(path, data) is data)

    def read(self, path):
        def read():
            if path not in self.objects:
                raise NotFound(path)
            return self.objects[path]

        return self.step(read)

    def list(self, prefix, after=""):
        for path in sorted(self.objects):
            if path.startswith(prefix) and path > after:
                self.step()
                yield Entry(path, len(self.objects[path]))

    def list_dirs(self, directory=""):
        return self.step(lambda: ["a"])

    def delete(self, path):
        self.step(lambda: self.objects.pop(path, None))

    def check(self, *, write=True):
        self.step()


class Time:
    """A clock that its own sleep moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert 0 < seconds <= 0.25
        self.now += seconds


def retrying(store: Store, **options) -> Retrying:
    time = options.pop("time", Time())
    return Retrying(store, **{"clock": time.clock, "sleep": time.sleep, "random": lambda: 0.0} | options)


BUSY, LOST, FATAL = RetryableStoreError("busy"), UnknownOutcome("lost"), FatalStoreError("no")


def test_each_operation_is_tried_until_it_works():
    store = Flaky()
    store.objects["a"] = b"data"
    for operation, result in [
        (lambda s: s.create("b", b""), True),
        (lambda s: s.read("a"), b"data"),
        (lambda s: s.list_dirs(), ["a"]),
        (lambda s: list(s.list("a")), [Entry("a", 4)]),
        (lambda s: s.delete("a"), None),
    ]:
        store.script = [BUSY, BUSY]
        assert operation(retrying(store)) == result
        assert store.script == []


def test_a_failure_for_good_is_raised_at_once():
    store = Flaky(FATAL)
    with pytest.raises(FatalStoreError):
        retrying(store).create("a", b"")
    assert store.calls == 1


def test_a_check_is_not_repeated():
    with pytest.raises(RetryableStoreError):
        retrying(Flaky(BUSY)).check()


def test_pauses_double_up_to_the_longest_and_chance_halves_them():
    for chance, shortest, longest in ((0.0, 0.2, 30.0), (1.0, 0.1, 15.0)):
        time, starts = Time(), []
        store = Flaky(*[BUSY] * 12)
        real = store.step
        store.step = lambda *args, time=time, starts=starts, real=real: (starts.append(time.now), real(*args))[1]
        retrying(store, time=time, random=lambda chance=chance: chance).delete("a")
        pauses = [round(later - earlier, 6) for earlier, later in pairwise(starts)]
        assert pauses == [min(shortest * 2**number, longest) for number in range(12)]


def test_failures_are_reported_once_and_then_by_count_and_their_end_too():
    reports = []
    retrying(Flaky(*[BUSY] * 25), report=reports.append).delete("a")
    assert reports == [
        "busy; trying again",
        "busy; 10 failures in 81 s, trying again",
        "busy; 20 failures in 381 s, trying again",
        "flaky works again after 25 failures in 561 s",
    ]


def test_success_is_not_worth_a_word():
    reports = []
    retrying(Flaky(), report=reports.append).delete("a")
    assert reports == []


def test_a_stop_ends_a_pause_within_a_quarter_of_a_second():
    time = Time()
    store = Flaky(*[BUSY] * 100)
    with pytest.raises(RetryableStoreError):
        retrying(store, time=time, stop=lambda: time.now >= 100).delete("a")
    assert 100 <= time.now <= 100.25


def test_attempts_are_counted():
    store = Flaky(*[BUSY] * 100)
    with pytest.raises(RetryableStoreError):
        retrying(store, attempts=3).delete("a")
    assert store.calls == 3


def test_a_create_whose_answer_was_lost_is_ours_when_its_bytes_are_there():
    store = Flaky((LOST,))
    assert retrying(store).create("a", b"data") is True
    assert store.objects == {"a": b"data"}


def test_a_create_whose_answer_was_lost_is_not_ours_when_another_s_bytes_are_there():
    store = Flaky(LOST)
    store.objects["a"] = b"other"
    assert retrying(store).create("a", b"data") is False


def test_a_taken_name_is_not_read_when_no_answer_was_lost():
    store = Flaky(BUSY)
    store.objects["a"] = b"data"
    assert retrying(store).create("a", bytes(bytearray(b"data"))) is False
    assert store.calls == 2


def test_a_failure_while_our_object_is_read_back_is_retried():
    store = Flaky((LOST,), (BUSY,), BUSY)
    assert retrying(store).create("a", b"data") is True


def test_an_unknown_outcome_can_be_left_to_the_caller():
    store = Flaky(BUSY, (LOST,))
    with pytest.raises(UnknownOutcome):
        retrying(store, retry_unknown=False).create("a", b"data")
    assert store.calls == 2


def test_an_unknown_outcome_stays_one_when_a_later_try_fails_otherwise():
    time = Time()
    with pytest.raises(UnknownOutcome, match="an earlier try may have worked; busy"):
        retrying(Flaky(LOST, *[BUSY] * 99), time=time, stop=lambda: time.now > 1).create("a", b"")
    with pytest.raises(UnknownOutcome, match="an earlier try may have worked; no"):
        retrying(Flaky(LOST, FATAL)).create("a", b"")


script = st.lists(st.sampled_from([BUSY, LOST, (BUSY,), (LOST,)]), max_size=8)


@given(script, st.booleans())
def test_a_create_says_true_if_and_only_if_the_object_is_there_with_our_bytes(lines, taken):
    # (BUSY,) would be a store that breaks its word: a create that was done is never merely retryable.
    store = Flaky(*(line for line in lines if line != (BUSY,)))
    if taken:
        store.objects["a"] = b"other"
    assert retrying(store).create("a", b"data") is not taken
    assert store.objects == {"a": b"other" if taken else b"data"}


@given(script)
def test_a_listing_with_failures_has_each_entry_once(lines):
    store = Flaky(*lines)
    store.objects = {f"{number}": b"" for number in range(5)}
    assert [entry.path for entry in retrying(store).list("", after="0")] == ["1", "2", "3", "4"]


# --- opening ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "url"),
    [
        ("/some/dir", "/some/dir"),
        ("file:///some/dir%20two", "/some/dir two"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://bucket/some/prefix/", "s3://bucket/some/prefix"),
    ],
)
def test_an_output_names_its_store(output, url):
    assert open_store(output).url == url


def test_a_relative_directory_is_one_of_the_working_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert open_store("out").url == str(tmp_path / "out")


@pytest.mark.parametrize(
    "output",
    ["", " ", "s3://", "s3:///prefix", "s3://bucket/a//b", "s3://bucket/../x", "s3://bucket?x=1", "s3a://bucket/x",
     "gs://bucket", "file://host/dir", "http://host/dir"],
)  # fmt: skip
def test_an_output_that_is_none_is_refused_in_one_line(output):
    with pytest.raises(ValueError, match="expected") as error:
        open_store(output)
    assert "\n" not in str(error.value)


def test_a_credential_in_an_output_is_refused_and_not_repeated():
    with pytest.raises(ValueError, match="without credentials") as error:
        open_store("s3://key:secret@bucket/prefix")
    assert "secret" not in str(error.value)


def test_an_endpoint_needs_its_scheme():
    with pytest.raises(ValueError, match="expected an endpoint like https://"):
        open_store("s3://bucket", endpoint="127.0.0.1:7070")


def test_a_configuration_travels_and_opens_elsewhere():
    config = StoreConfig("s3://bucket/prefix", endpoint="http://127.0.0.1:9", region="eu-west-1")
    assert pickle.loads(pickle.dumps(config)) == config
    assert pickle.loads(pickle.dumps(config)).open().url == "s3://bucket/prefix"
