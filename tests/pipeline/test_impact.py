"""The timeline of a Service: what belongs to it, how repeats fold, and what a person sees of it."""

import collections
import json
from collections.abc import Iterable

import pytest
from kubehistory import record_pb2 as pb

from pipeline.impact import Timeline, as_document, as_text, main, timelines
from transforms import codec
from transforms.store import LocalStore

HOUR_US = 3_600_000_000
BEGIN_US = 500_000 * HOUR_US


def event(at_s: int, name: str = "web-1", message: str = "Back-off", count: int = 1, **fields) -> pb.Record:
    record = pb.Record(
        kind=pb.EVENT,
        cluster=fields.pop("cluster", "c"),
        uid=f"{name}{at_s}",
        resource_version=str(at_s),
        time_us=BEGIN_US + at_s * 1_000_000,
        type="Warning",
        reason="BackOff",
        message=message,
        occurrences=count,
        involved=pb.Reference(kind="Pod", namespace="shop", name=name),
        services=[pb.ServiceRef(namespace="shop", name="web", how="endpointslice")],
        node="node-1",
    )
    for key, value in fields.items():
        setattr(record, key, value)
    return record


def change(at_s: int) -> pb.Record:
    return pb.Record(
        kind=pb.SERVICE_CHANGE,
        cluster="c",
        time_us=BEGIN_US + at_s * 1_000_000,
        involved=pb.Reference(kind="Service", namespace="shop", name="web"),
        services=[pb.ServiceRef(namespace="shop", name="web", how="self")],
        service_change=pb.ServiceChange(
            change=pb.ServiceChange.UPDATED,
            changed=["selector"],
            before=pb.ServiceState(selector={"app": "web"}),
            after=pb.ServiceState(selector={"app": "web", "track": "canary"}),
            pods=[pb.Pod(name="web-1")],
        ),
    )


def endpoints(at_s: int) -> pb.Record:
    return pb.Record(
        kind=pb.ENDPOINTS_CHANGE,
        cluster="c",
        time_us=BEGIN_US + at_s * 1_000_000,
        involved=pb.Reference(kind="EndpointSlice", namespace="shop", name="web-x"),
        services=[pb.ServiceRef(namespace="shop", name="web", how="self")],
        endpoints_change=pb.EndpointsChange(
            service="web",
            joined=[pb.EndpointRef(name="web-2")],
            left=[pb.EndpointRef(addresses=["10.0.0.9"], ready=True)],
            ready=2,
            total=4,
        ),
    )


def slice_change(at_s: int, *, uid: str = "slice", by_list: bool = False, **change) -> pb.Record:
    """A change of a slice of the Service; joined, left, ... are names, a leading "-" says not ready."""
    record = endpoints(at_s)
    record.uid, record.found_by_list = uid, by_list
    for field in ("joined", "left", "became_ready", "became_unready"):
        names = change.pop(field, "").split()
        change[field] = [pb.EndpointRef(name=name.lstrip("-"), ready=name[0] != "-") for name in names]
    record.endpoints_change.CopyFrom(pb.EndpointsChange(service="web", **change))
    return record


def timeline(records: Iterable[pb.Record], service: str) -> Timeline:
    (found,) = timelines(records, service)
    return found


def summary(records: Iterable[pb.Record], service: str = "shop/web") -> dict[str, str]:
    """The summary's lines by their first word."""
    lines = list(as_text(timeline(records, service)))
    return dict(line.split(maxsplit=1) for line in lines[1 : lines.index("")])


def test_repeats_of_one_object_are_one_row_with_the_true_count():
    found = timeline([event(1, message="attempt 1", count=2), event(9, message="attempt 2", count=5)], "shop/web")
    (row,) = found.rows
    assert (row.count, row.last_us - BEGIN_US, row.message) == (7, 9_000_000, "attempt 2")
    assert (found.events, found.warnings, found.reasons["BackOff"]) == (7, 7, 7)


def test_steps_of_scaling_are_rows_of_their_own():
    steps = [event(at_s, message=f"Scaled down from {9 - at_s} to {8 - at_s}") for at_s in (1, 2)]
    for one in steps:
        one.reason = "ScalingReplicaSet"
    assert len(timeline(steps, "shop/web").rows) == 2


def test_another_object_or_message_is_a_row_of_its_own():
    found = timeline([event(1), event(2, name="web-2"), event(3, message="OOM")], "shop/web")
    assert [row.object for row in found.rows] == ["Pod/web-1", "Pod/web-2", "Pod/web-1"]
    assert found.pods == {"web-1", "web-2"}
    assert found.nodes == {"node-1"}


def test_what_belongs_to_other_services_is_left_out_and_counted():
    other = event(1)
    other.services[0].name = "api"
    others: collections.Counter[str] = collections.Counter()
    assert timelines([other], "shop/web", others) == []
    assert others == {"shop/api": 1}


def test_changes_of_the_service_and_its_endpoints_say_what_changed():
    found = timeline([change(1), endpoints(2)], "shop/web")
    service, slices = found.rows
    assert service.message == "selector: app=web -> app=web,track=canary; 1 pod behind it"
    assert (slices.reason, slices.warning) == ("Left+Joined", True)
    assert slices.message == "2 of 4 ready; left: 10.0.0.9; joined: web-2 (not ready)"
    assert (found.changes, found.joined, found.left) == (1, 1, 1)


def gap(from_s: int, namespace: str = "", cluster: str = "c", why: str = "away") -> pb.Record:
    begin_us = BEGIN_US + from_s * 1_000_000
    told = pb.Gap(from_us=begin_us, to_us=begin_us + 1_000_000, why=why, resource="events", namespace=namespace)
    return pb.Record(kind=pb.GAP, cluster=cluster, time_us=told.to_us, gap=told)


def test_gaps_of_the_cluster_and_of_the_namespace_are_named():
    records = [gap(0), gap(1, "shop"), gap(2, "payments"), gap(3, cluster="other"), event(9)]
    assert [one.from_us for one in timeline(records, "shop/web").gaps] == [BEGIN_US, BEGIN_US + 1_000_000]


def test_many_gaps_of_one_reason_are_one_line():
    lines = [line for line in as_text(timeline([*map(gap, range(9)), event(10)], "shop/web")) if "GAP" in line]
    assert len(lines) == 1
    assert "and 6 more: away" in lines[0]


def test_one_name_in_two_clusters_is_two_timelines():
    found = timelines([event(1, cluster="b"), event(2, cluster="a"), event(3, cluster="b")], "shop/web")
    assert [(one.cluster, [row.count for row in one.rows]) for one in found] == [("a", [1]), ("b", [2])]


def test_pods_of_one_name_in_two_namespaces_are_two_rows():
    other = event(2)
    other.involved.namespace = "test"
    assert len(timeline([event(1), other], "shop/web").rows) == 2


def test_what_a_list_found_first_was_there_and_did_not_join():
    found = timeline([slice_change(1, by_list=True, joined="a -b", ready=1, total=2)], "shop/web")
    (row,) = found.rows
    assert (row.reason, row.message, row.warning) == ("Listed", "1 of 2 ready; there: a, b (not ready)", False)
    assert (found.joined, found.left) == (0, 0)


def test_what_a_list_found_later_says_so():
    found = timeline([slice_change(1, by_list=True, left="a", ready=1, total=1)], "shop/web")
    assert found.rows[0].message == "1 of 1 ready; left: a (found by a list)"


def test_the_summary_tells_the_ready_endpoints_at_first_at_the_fewest_and_at_last():
    records = [
        slice_change(1, became_unready="a", ready=2, total=3),
        slice_change(5, left="b c", ready=0, total=1),
        slice_change(9, joined="d", ready=1, total=2),
    ]
    assert summary(records)["endpoints"] == (
        "3 of 3 ready at first, 0 of 1 ready at 08:00:05, 1 of 2 ready at last; 1 joined, 2 left, 1 turned unready"
    )
    ready = as_document(timeline(records, "shop/web"))["summary"]["ready"]
    assert [(one["ready"], one["total"]) for one in ready.values()] == [(3, 3), (0, 1), (1, 2)]


def test_endpoints_are_counted_over_all_slices():
    records = [
        slice_change(1, uid="one", by_list=True, joined="a b", ready=2, total=2),
        slice_change(1, uid="two", by_list=True, joined="c", ready=1, total=1),
        slice_change(5, uid="one", left="a", ready=1, total=1),
    ]
    found = timeline(records, "shop/web")
    assert found.rows[-1].message.startswith("2 of 2 ready")
    assert str(found.endpoints[0]) == "3 of 3 ready"


def test_one_endpoint_for_another_is_no_warning():
    assert not timeline([slice_change(1, left="a", joined="b", ready=1, total=1)], "shop/web").rows[0].warning
    assert not timeline([slice_change(1, left="-a", ready=0, total=0)], "shop/web").rows[0].warning
    assert timeline([slice_change(1, left="a", joined="-b", ready=0, total=1)], "shop/web").rows[0].warning


def test_a_slice_that_moved_left_the_one_service_and_joined_the_other():
    moved = slice_change(1, joined="a", left="a", ready=1, total=1)
    moved.endpoints_change.former_service = "api"
    moved.services.add(namespace="shop", name="api", how="self")
    assert timeline([moved], "shop/web").rows[0].message == "1 of 1 ready; joined: a"
    assert timeline([moved], "shop/api").rows[0].message == "0 of 0 ready; left: a"


def test_without_changes_of_endpoints_the_summary_says_so():
    assert summary([event(1)])["endpoints"] == "no change"
    assert as_document(timeline([event(1)], "shop/web"))["summary"]["ready"] is None


def test_a_message_can_not_command_the_terminal():
    (line,) = list(as_text(timeline([event(1, message="\x1b[2Jgone")], "shop/web")))[-1:]
    assert line.endswith("?[2Jgone")


@pytest.mark.parametrize("width", [80, 120])
def test_a_message_has_room_beside_a_long_name(width):
    found = timeline([event(1, name="web-" + "x" * 200 + "-7", message="Back-off " * 30, count=3)], "shop/web")
    *_, line = as_text(found, width)
    assert len(line) == width
    assert "xx-7" in line
    assert "Back-off" in line


def test_lines_are_cut_to_the_terminal_and_warnings_are_marked_with_and_without_colour():
    found = timeline([event(1, message="x" * 200)], "shop/web")
    plain = list(as_text(found, width=60))[-1]
    assert len(plain) == 60
    assert " ! " in plain
    assert plain.endswith("…")
    assert list(as_text(found, colour=True))[-1].startswith("\x1b[33m")
    assert "x" * 200 in list(as_text(found))[-1]


def test_the_document_has_the_times_and_counts_of_every_row():
    document = as_document(timeline([event(1), change(2)], "shop/web"))
    assert [row["kind"] for row in document["timeline"]] == ["EVENT", "SERVICE"]
    assert document["summary"]["events"] == 1
    assert document["timeline"][0]["time"].endswith("Z")


@pytest.fixture
def output(tmp_path):
    records = [event(1), change(2)]
    path = codec.segment_name(codec.partition("c", BEGIN_US), "00", 0)
    LocalStore(tmp_path).create(path, codec.pack([record.SerializeToString() for record in records]))
    return str(tmp_path)


def test_the_command_prints_text_and_json(output, capsys):
    assert main([output, "--service", "shop/web"]) == 0
    assert "BackOff" in capsys.readouterr().out
    assert main([output, "--service", "shop/web", "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["cluster"], document["service"]) == ("c", "shop/web")


def test_the_command_asks_for_one_cluster_or_tells_all(output, capsys):
    path = codec.segment_name(codec.partition("d", BEGIN_US), "00", 0)
    LocalStore(output).create(path, codec.pack([event(1, cluster="d").SerializeToString()]))
    assert main([output, "--service", "shop/web", "--format", "json"]) == 0
    assert [json.loads(line)["cluster"] for line in capsys.readouterr().out.splitlines()] == ["c", "d"]
    assert main([output, "--service", "shop/web", "--cluster", "d"]) == 0
    assert capsys.readouterr().out.startswith("shop/web in d")


def test_a_file_that_can_not_be_read_is_named_and_the_rest_is_told(output, capsys):
    path = codec.segment_name(codec.partition("c", BEGIN_US), "00", 1)
    LocalStore(output).create(path, b"none")
    assert main([output, "--service", "shop/web"]) == 1
    out, err = capsys.readouterr()
    assert "BackOff" in out
    assert path in err


def test_an_unknown_service_is_one_line_with_what_is_near(output, capsys):
    assert main([output, "--service", "shop/wed"]) == 1
    assert "there is shop/web" in capsys.readouterr().err


def test_a_service_of_another_namespace_is_what_is_nearest(output, capsys):
    assert main([output, "--service", "production/web"]) == 1
    assert "there is shop/web" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--service", "web"], ["--service", "shop/web", "--since", "soon"], []])
def test_a_wrong_parameter_is_one_line_and_exit_code_2(output, capsys, arguments):
    assert main([output, *arguments]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_output_that_is_not_there_is_exit_code_2(tmp_path, capsys):
    assert main([str(tmp_path / "none"), "--service", "shop/web"]) == 2
    assert "expected a directory" in capsys.readouterr().err
