"""The timeline of a Service: what belongs to it, how repeats fold, and what a person sees of it."""

import collections
import json

import pytest
from kubehistory import record_pb2 as pb

from pipeline.impact import as_document, as_text, main, timeline
from transforms import codec
from transforms.store import LocalStore

HOUR_US = 3_600_000_000
BEGIN_US = 500_000 * HOUR_US


def event(at_s: int, name: str = "web-1", message: str = "Back-off", count: int = 1, **fields) -> pb.Record:
    record = pb.Record(
        kind=pb.EVENT,
        cluster="c",
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
        time_us=BEGIN_US + at_s * 1_000_000,
        involved=pb.Reference(kind="EndpointSlice", namespace="shop", name="web-x"),
        services=[pb.ServiceRef(namespace="shop", name="web", how="self")],
        endpoints_change=pb.EndpointsChange(
            service="web",
            joined=[pb.EndpointRef(name="web-2")],
            left=[pb.EndpointRef(addresses=["10.0.0.9"])],
        ),
    )


def test_repeats_of_one_object_are_one_row_with_the_true_count():
    found = timeline([event(1, message="attempt 1", count=2), event(9, message="attempt 2", count=5)], "shop/web")
    (row,) = found.rows
    assert (row.count, row.last_us - BEGIN_US, row.message) == (7, 9_000_000, "attempt 2")
    assert (found.events, found.warnings, found.reasons["BackOff"]) == (7, 7, 7)


def test_another_object_or_message_is_a_row_of_its_own():
    found = timeline([event(1), event(2, name="web-2"), event(3, message="OOM")], "shop/web")
    assert [row.object for row in found.rows] == ["Pod/web-1", "Pod/web-2", "Pod/web-1"]
    assert found.pods == {"web-1", "web-2"}
    assert found.nodes == {"node-1"}


def test_what_belongs_to_other_services_is_left_out_and_counted():
    other = event(1)
    other.services[0].name = "api"
    others: collections.Counter[str] = collections.Counter()
    assert timeline([other], "shop/web", others).rows == []
    assert others == {"shop/api": 1}


def test_changes_of_the_service_and_its_endpoints_say_what_changed():
    found = timeline([change(1), endpoints(2)], "shop/web")
    service, slices = found.rows
    assert service.message == "selector: app=web -> app=web,track=canary; 1 pods behind it"
    assert (slices.reason, slices.message, slices.warning) == ("Left+Joined", "left: 10.0.0.9; joined: web-2", True)
    assert (found.changes, found.joined, found.left) == (1, 1, 1)


def test_a_gap_is_named_whatever_service_was_asked_for():
    gap = pb.Record(kind=pb.GAP, time_us=BEGIN_US, gap=pb.Gap(from_us=BEGIN_US, to_us=BEGIN_US + 1, why="away"))
    assert timeline([gap], "shop/web").gaps == [(BEGIN_US, BEGIN_US + 1, "away")]


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
    assert json.loads(capsys.readouterr().out)["service"] == "shop/web"


def test_an_unknown_service_is_one_line_with_what_is_near(output, capsys):
    assert main([output, "--service", "shop/wed"]) == 1
    assert "there is shop/web" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--service", "web"], ["--service", "shop/web", "--since", "soon"], []])
def test_a_wrong_parameter_is_one_line_and_exit_code_2(output, capsys, arguments):
    assert main([output, *arguments]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_output_that_is_not_there_is_exit_code_2(tmp_path, capsys):
    assert main([str(tmp_path / "none"), "--service", "shop/web"]) == 2
    assert "expected a directory" in capsys.readouterr().err
