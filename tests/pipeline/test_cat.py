"""`python -m pipeline.cat`: a sink's records as JSON lines."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kubehistory.record_pb2 import Record

from pipeline import cat
from pipeline.reading import parse_time, rfc3339
from transforms import codec
from transforms.store import LocalStore, S3Store

GOLDEN = Path(__file__).parents[1] / "golden"
START_US = 1_769_900_400_000_000  # 2026-01-31T23:00:00Z
HOUR_US = 3_600_000_000


def event(number: int, **fields) -> Record:
    return Record(kind="EVENT", cluster="prod", uid=f"u{number}", time_us=START_US + number, **fields)


def put(store, *records: Record, seq: int = 0, cluster: str = "prod") -> None:
    by_partition: dict[str, list[bytes]] = {}
    for record in records:
        partition = codec.partition(cluster, record.time_us)
        by_partition.setdefault(partition, []).append(record.SerializeToString())
    for partition, data in by_partition.items():
        assert store.create(codec.segment_name(partition, "00", seq), codec.pack(data))


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "out")


@pytest.fixture
def run(store, capfdbinary):
    """Runs the command on the store; gives its exit code, its records and its lines on stderr."""

    def run(*options: str, output: str | None = None):
        code = cat.main([output or store.url, *options])
        sys.stdout.flush()
        out, err = capfdbinary.readouterr()
        return code, [json.loads(line) for line in out.splitlines()], err.decode().splitlines()

    return run


@pytest.fixture
def uids(run):
    """Runs the command, which must succeed; gives the UIDs in their order."""

    def uids(*options: str) -> list[str]:
        code, records, errors = run(*options)
        assert (code, errors) == (0, [])
        return [record["uid"] for record in records]

    return uids


def full_record() -> Record:
    record = Record(
        kind="SERVICE_CHANGE",
        cluster="prod",
        uid="u",
        resource_version="7",
        time_us=START_US + 1,
        observed_time_us=START_US + 2,
        namespace="shop",
        name="checkout",
        type="Warning",
        reason="BackOff",
        message='a "quoted" line\nand ünïcode',
        first_time_us=-62_135_596_800_000_000,
        event_time_us=2**62,
        count=2**53 + 1,
        occurrences=3,
        labels={"b": "2", "a": "1"},
        node_addresses=[{"type": "InternalIP", "address": "10.0.0.1"}],
        enrichment="TOMBSTONE",
    )
    record.involved.kind = "Pod"
    record.owners.add(kind="ReplicaSet", name="checkout-1")
    record.owners.add(kind="Deployment", name="checkout")
    record.pod.start_time_us = START_US
    record.pod.ready = True
    record.service_change.change = 3
    record.service_change.changed.append("ports")
    record.service_change.before.ports.add(name="http", port=80, target_port="8080")
    record.service_change.after.SetInParent()
    record.gap.from_us = START_US
    record.gap.to_us = START_US + HOUR_US
    return record


def test_a_record_is_the_golden_json():
    assert json.dumps(cat.as_dict(full_record()), indent=1, ensure_ascii=False) + "\n" == (
        GOLDEN / "record.json"
    ).read_text(encoding="utf-8")


def test_every_field_of_the_schema_has_a_key_of_its_own():
    def keys(table):
        return [key for key, _ in table.values()]

    assert len(set(keys(cat._RECORD))) == len(Record.DESCRIPTOR.fields)
    assert not any(key.endswith("_us") for key in keys(cat._RECORD))


def test_an_enum_value_that_this_version_does_not_know_is_its_number():
    assert cat.as_dict(Record.FromString(b"\x08\x63")) == {"kind": 99}


@pytest.mark.parametrize(
    ("time_us", "text"),
    [
        (START_US, "2026-01-31T23:00:00.000000Z"),
        (1, "1970-01-01T00:00:00.000001Z"),
        (-1, "1969-12-31T23:59:59.999999Z"),
        (-62_135_596_800_000_000, "0001-01-01T00:00:00.000000Z"),
        (2**63 - 1, 2**63 - 1),
    ],
)
def test_a_time_is_rfc_3339_with_microseconds(time_us, text):
    assert rfc3339(time_us) == text


def test_records_come_oldest_first(store, uids):
    put(store, event(3), event(1), event(HOUR_US))
    put(store, event(2), seq=1)
    assert uids() == ["u1", "u2", "u3", f"u{HOUR_US}"]


def test_a_limit_ends_it(store, uids):
    put(store, event(1), event(2), event(3))
    assert uids("--limit", "2") == ["u1", "u2"]


def test_since_has_its_time_and_until_has_not(store, uids):
    put(store, *(event(second * 1_000_000) for second in range(4)))
    assert uids("--since", "2026-01-31T23:00:01Z", "--until", "2026-02-01T00:00:03+01:00") == ["u1000000", "u2000000"]


def test_since_may_be_a_duration_back_from_now(store, uids):
    now_us = time.time_ns() // 1000
    put(store, *(Record(uid=f"{ago}", time_us=now_us - ago * 60_000_000) for ago in (1, 10, 20, 90)))
    assert uids("--since", "15m") == ["10", "1"]
    assert uids("--since", "1h", "--until", "15m") == ["20"]


@pytest.mark.parametrize(
    ("text", "time_us"),
    [
        ("30s", START_US - 30_000_000),
        ("15m", START_US - 900_000_000),
        ("1.5h", START_US - 5_400_000_000),
        ("2d", START_US - 172_800_000_000),
        ("1w", START_US - 604_800_000_000),
        ("2026-01-31T23:00:00Z", START_US),
        ("2026-01-31T23:00:00.000001Z", START_US + 1),
        ("2026-02-01T01:00:00+02:00", START_US),
        ("2026-01-31 23:00:00", START_US),
        ("2026-01-31", START_US - 23 * HOUR_US),
    ],
)
def test_a_time_or_a_duration_is_understood(text, time_us):
    assert parse_time(text, now_us=START_US) == time_us


@pytest.mark.parametrize("text", ["", "yesterday", "15", "m", "-1h", "15 m", "2026-13-01T00:00:00Z"])
def test_what_is_neither_a_time_nor_a_duration_is_refused(text):
    with pytest.raises(ValueError, match="expected a time such as"):
        parse_time(text, now_us=START_US)


def test_the_namespace_is_the_event_s_or_the_object_s(store, uids):
    put(
        store,
        event(1, namespace="shop"),
        event(2, namespace="default", involved={"namespace": "shop"}),
        event(3, namespace="other"),
    )
    assert uids("--namespace", "shop") == ["u1", "u2"]
    assert uids("--namespace", "shop", "--namespace", "other") == ["u1", "u2", "u3"]


def test_a_service_is_one_under_impact_or_one_that_changed(store, uids):
    put(
        store,
        event(1, services=[{"namespace": "x", "name": "other"}, {"namespace": "shop", "name": "checkout"}]),
        event(2, services=[{"namespace": "test", "name": "checkout"}]),
        Record(kind="SERVICE_CHANGE", uid="u3", time_us=START_US + 3, namespace="shop", name="checkout",
               service_change={"change": "UPDATED"}),
        Record(kind="ENDPOINTS_CHANGE", uid="u4", time_us=START_US + 4, namespace="shop", name="checkout-x7x",
               endpoints_change={"service": "checkout"}),
        event(5, namespace="shop", name="checkout"),
    )  # fmt: skip
    assert uids("--service", "checkout") == ["u1", "u2", "u3", "u4"]
    assert uids("--service", "shop/checkout") == ["u1", "u3", "u4"]


def test_reason_type_and_kind_are_the_event_s(store, uids):
    put(
        store,
        event(1, reason="BackOff", type="Warning", involved={"kind": "Pod"}),
        event(2, reason="Scheduled", type="Normal", involved={"kind": "Pod"}),
        event(3, reason="NodeNotReady", type="Warning", involved={"kind": "Node"}),
        Record(kind="GAP", uid="u4", time_us=START_US + 4),
    )
    assert uids("--reason", "BackOff", "--reason", "Scheduled") == ["u1", "u2"]
    assert uids("--type", "Warning") == ["u1", "u3"]
    assert uids("--kind", "Node") == ["u3"]
    assert uids("--kind", "GAP") == ["u4"]
    assert uids("--kind", "Pod", "--type", "Warning") == ["u1"]


def test_a_cluster_is_chosen_by_name(store, uids):
    put(store, event(1))
    put(store, event(2), cluster="test")
    assert uids("--cluster", "test") == ["u2"]


def test_an_empty_directory_has_no_records(store, uids):
    os.makedirs(store.url)
    assert uids() == []


def test_a_file_that_can_t_be_read_is_named_and_the_rest_goes_on(store, run):
    put(store, event(1))
    put(store, event(2), seq=1)
    path = codec.segment_name(codec.partition("prod", START_US), "00", 0)
    Path(store.url, path).write_bytes(store.read(path)[:-5])
    code, records, errors = run()
    assert code == 1
    assert [record["uid"] for record in records] == ["u2"]
    assert len(errors) == 1
    assert path in errors[0]
    assert "cut off" in errors[0]


@pytest.mark.parametrize(
    "options",
    [
        ["--since", "yesterday"],
        ["--until", "x"],
        ["--limit", "0"],
        ["--limit", "x"],
        ["--s3_endpoint", "127.0.0.1:7070"],
        ["--nonsense"],
        ["--since"],
    ],
    ids=str,
)
def test_a_wrong_option_is_one_line_and_exit_2(store, run, options):
    put(store, event(1))
    code, records, errors = run(*options)
    assert (code, records, len(errors)) == (2, [], 1)


@pytest.mark.parametrize("output", ["/not/there", "gs://bucket", "s3://"])
def test_a_wrong_output_is_one_line_and_exit_2(run, output):
    code, records, errors = run(output=output)
    assert (code, records, len(errors)) == (2, [], 1)
    assert "expected" in errors[0]


def test_a_missing_output_is_one_line_and_exit_2(capsys):
    assert cat.main([]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_help_names_every_option(capsys):
    assert cat.main(["--help"]) == 0
    text = capsys.readouterr().out
    for option in ("follow", "since", "until", "namespace", "service", "reason", "type", "kind", "cluster", "limit",
                   "s3_endpoint", "s3_region", "s3_profile"):  # fmt: skip
        assert f"--{option}" in text


def command(*arguments: str, **options) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # Where the tests run in the background, they ignore SIGINT, and so would what they start.
    options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen([sys.executable, "-m", "pipeline.cat", *arguments], **pipes, **options)


def test_a_reader_that_goes_away_ends_it_quietly(store):
    put(store, *(event(number, message="x" * 500) for number in range(5000)))
    with command(store.url) as process:
        assert process.stdout.readline()
        process.stdout.close()
        assert process.wait(30) == 0
        assert process.stderr.read() == b""


def test_following_prints_what_appears_and_ctrl_c_ends_it_well(store):
    now_us = time.time_ns() // 1000
    put(store, Record(uid="old", time_us=now_us - 30 * HOUR_US), Record(uid="new", time_us=now_us))
    with command(store.url, "--follow") as process:
        uids = [json.loads(process.stdout.readline())["uid"] for _ in range(2)]
        put(store, Record(uid="newer", time_us=now_us + 1), seq=1)
        uids.append(json.loads(process.stdout.readline())["uid"])
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stdout.read() == b""
        assert process.stderr.read() == b""
    assert uids == ["old", "new", "newer"]


def test_following_sees_a_late_segment_within_a_minute_and_nothing_twice(store):
    now_us = START_US + 100 * HOUR_US
    put(store, Record(uid="first", time_us=now_us))
    batches = cat.follow(store, None, None, [], pytest.fail, clock=lambda: now_us / 1e6, sleep=lambda _: None)
    assert [record.uid for record in next(batches)] == ["first"]
    put(store, Record(uid="late", time_us=START_US))
    put(store, Record(uid="second", time_us=now_us - HOUR_US))
    looks = [[record.uid for record in next(batches)] for _ in range(60)]
    assert looks[0] == ["second"]
    assert looks[29] == ["late"]
    assert [uid for look in looks for uid in look] == ["second", "late"]


@pytest.mark.real
def test_a_prefix_of_a_bucket_is_read_like_a_directory(s3, bucket, run, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)
    put(S3Store(bucket, "history", endpoint=s3.endpoint), event(2), event(1))
    code, records, errors = run("--s3_endpoint", s3.endpoint, output=f"s3://{bucket}/history")
    assert ([record["uid"] for record in records], code, errors) == (["u1", "u2"], 0, [])
    code, _, errors = run("--s3_endpoint", s3.endpoint, output="s3://not-there/history")
    assert (code, len(errors)) == (2, 1)
    assert "NoSuchBucket" in errors[0]
