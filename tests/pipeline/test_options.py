"""The parameters: each is a flag and a key of the config file, and a wrong one is one line."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.options import HistoryOptions, UsageError, config_of, parse
from runners.config import JobConfig
from transforms.kube import Cluster
from transforms.store import StoreConfig
from transforms.watch import Filter

ASKED_FOR = [
    *("runner", "output", "cluster", "kubeconfig", "context", "namespaces", "exclude_namespaces", "reasons", "types"),
    *("kinds", "batch_size", "batch_interval", "snapshot_interval", "resync_interval", "run_for", "once", "demo"),
    *("debug", "config"),
]


def parameters() -> dict[str, argparse.Action]:
    parser = argparse.ArgumentParser(add_help=False)
    HistoryOptions._add_argparse_args(parser)
    return {action.dest: action for action in parser._actions}


def configured(*arguments: str) -> JobConfig:
    return config_of(parse(["--output", "/history", *arguments]))


def config_file(directory: Path, **values: Any) -> str:
    path = directory / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def test_all_parameters_that_were_asked_for_are_there():
    assert set(ASKED_FOR) - {"runner"} <= set(parameters())


def test_every_parameter_has_a_help_text():
    assert [name for name, action in parameters().items() if not action.help] == []


def test_the_help_lists_all_parameters_and_ends_well(capsys):
    with pytest.raises(SystemExit) as ended:
        parse(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert [name for name in {*parameters(), *ASKED_FOR} if f"--{name}" not in shown] == []


def test_output_alone_is_enough():
    config = configured()
    assert config == JobConfig(
        "DirectRunner",
        (Cluster("default"),),
        StoreConfig("/history"),
        settings=dataclasses.replace(config.settings, clusters=(Cluster("default"),), store=StoreConfig("/history")),
    )
    assert config.settings.timing.resync_s == 0
    assert config.event_ttl_s == 3600


def test_what_is_given_is_what_the_job_gets(tmp_path):
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.touch()
    config = config_of(
        parse(
            f"--runner DirectRunner --output s3://bucket/prefix --cluster eu-1 --kubeconfig {kubeconfig} --context eu "
            "--exclude_namespaces kube-system,b --reasons BackOff,OOMKilling --types Warning --kinds Pod,Node "
            "--batch_size 500 --batch_interval 2.5 --snapshot_interval 30 --resync_interval 600 --event_ttl 7200 "
            "--delivery no-duplicates --shards 4 --s3_endpoint https://s3:9000 --s3_region eu-central-1 "
            "--s3_profile ship --s3_storage_class GLACIER_IR --run_for 60 --debug".split()
        )
    )
    store = StoreConfig("s3://bucket/prefix", "https://s3:9000", "eu-central-1", "ship", "GLACIER_IR")
    keep = Filter(
        frozenset({"kube-system", "b"}),
        frozenset({"BackOff", "OOMKilling"}),
        frozenset({"Warning"}),
        frozenset({"Pod", "Node"}),
    )
    clusters = (Cluster("eu-1", str(kubeconfig), "eu"),)
    assert config == JobConfig(
        runner="DirectRunner",
        clusters=clusters,
        store=store,
        keep=keep,
        batch_size=500,
        batch_interval_s=2.5,
        snapshot_interval_s=30.0,
        run_for_s=60.0,
        delivery="no-duplicates",
        shards=4,
        debug=True,
        settings=config.settings,
    )
    assert (config.settings.clusters, config.settings.store) == (clusters, store)
    assert config.settings.selector == "metadata.namespace!=b,metadata.namespace!=kube-system"
    assert (config.settings.timing.resync_s, config.settings.timing.event_ttl_s) == (600.0, 7200.0)


def test_once_is_known_to_readers_too():
    config = configured("--once")
    assert config.once
    assert config.settings.once


def test_namespaces_are_taken_once_each_in_order():
    assert configured("--namespaces", "b, a,b,,").namespaces == ("a", "b")


def test_the_demo_cluster_is_called_so_unless_told_otherwise():
    assert configured("--demo").clusters == (Cluster("demo"),)
    assert configured("--demo", "--cluster", "x").clusters == (Cluster("x"),)


def test_many_clusters_have_a_name_and_a_context_each():
    clusters = (Cluster("eu", "", "eu-admin"), Cluster("us", "", "us-admin"))
    assert configured("--cluster", "eu=eu-admin", "--cluster", "us=us-admin").clusters == clusters


def test_clusters_of_the_command_line_replace_those_of_the_file(tmp_path):
    path = config_file(tmp_path, output="o", cluster=["a=x", "b=y"])
    assert [cluster.name for cluster in config_of(parse(["--config", path])).clusters] == ["a", "b"]
    assert [cluster.name for cluster in config_of(parse(["--config", path, "--cluster", "c"])).clusters] == ["c"]


# --- what is wrong ----------------------------------------------------------------------------

WRONG = [
    ("", "expected --output (a directory, or s3://bucket/prefix), got none"),
    ("--output=", "expected --output"),
    ("--output ftp://x", "--output: expected a directory, file:///directory or s3://bucket/prefix"),
    ("--output s3://", "--output: expected a directory"),
    ("--output s3://key:secret@bucket/p", "without credentials"),
    ("--output o --s3_endpoint s3:9000", "expected an endpoint like https://host:port, got 's3:9000'"),
    ("--output o --runner SparkRunner", "SparkRunner"),
    ("--output o --nope 1", "unrecognized arguments: --nope 1"),
    ("--output o --batch 7", "unrecognized arguments: --batch 7"),
    ("--output o stray", "unrecognized arguments: stray"),
    ("--output", "argument --output: expected one argument"),
    ("--output o --batch_size 0", "argument --batch_size: expected a whole number of 1 or more, got '0'"),
    ("--output o --batch_size 1.5", "got '1.5'"),
    ("--output o --batch_size many", "got 'many'"),
    ("--output o --batch_size -1", "got '-1'"),
    ("--output o --shards 0", "argument --shards"),
    ("--output o --batch_interval 0", "argument --batch_interval: expected seconds above 0, got '0'"),
    ("--output o --batch_interval nan", "got 'nan'"),
    ("--output o --batch_interval inf", "got 'inf'"),
    ("--output o --batch_interval soon", "got 'soon'"),
    ("--output o --snapshot_interval -5", "argument --snapshot_interval: expected seconds above 0, got '-5'"),
    ("--output o --event_ttl 0", "argument --event_ttl"),
    ("--output o --resync_interval -1", "expected seconds, or 0 for never, got '-1'"),
    ("--output o --run_for never", "expected seconds, or 0 for never, got 'never'"),
    ("--output o --namespaces=,", "expected names separated by commas, got ','"),
    ("--output o --delivery maybe", "argument --delivery: invalid choice: 'maybe'"),
    ("--output o --once=yes", "argument --once: ignored explicit argument 'yes'"),
    ("--output o --once --run_for 5", "expected --once or --run_for, got both"),
    ("--output o --namespaces a --exclude_namespaces b", "expected --namespaces or --exclude_namespaces, got both"),
    ("--output o --demo --context x", "expected --demo, or --kubeconfig and --context, got both"),
    ("--output o --kubeconfig /nowhere/kubeconfig", "to be a file, got '/nowhere/kubeconfig', which is none"),
    (
        "--output o --cluster a --cluster b=ctx",
        "NAME=CONTEXT where there are many or contexts, got 'a'",
    ),
    ("--output o --cluster a=", "expected --cluster NAME=CONTEXT"),
    ("--output o --cluster a=x --cluster a=y", "expected --cluster with a name for each, got one twice: a, a"),
    ("--output o --cluster a=x --context y", "expected --cluster NAME=CONTEXT or --context, got both"),
    ("--output o --cluster a=x --cluster b=y --demo", "expected --cluster NAME=CONTEXT or --demo, got both"),
    ("--output o --runner FlinkRunner", "expected --flink_master (host:port) with --runner FlinkRunner, got none"),
    (
        "--output o --runner PortableRunner",
        "expected --job_endpoint (host:port) with",
    ),
    ("--output o --runner PrismRunner --once", "expected --once with --runner DirectRunner, got it with PrismRunner"),
    (
        "--output o --runner PrismRunner --delivery no-duplicates",
        "expected --delivery no-loss with --runner PrismRunner, got 'no-duplicates'",
    ),
    (
        "--output o --runner PrismRunner --state_backend rocksdb",
        "expected --state_backend and --state_backend_storage_path together, got one of them",
    ),
    ("--config /nowhere/config.yaml", "--config /nowhere/config.yaml: "),
    ("--config", "argument --config: expected one argument"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[arguments or "none" for arguments, _ in WRONG])
def test_a_wrong_parameter_is_one_line(arguments, message):
    with pytest.raises(UsageError) as caught:
        config_of(parse(arguments.split()))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_parameter_with_a_line_end_in_it_is_one_line_too():
    with pytest.raises(UsageError) as caught:
        parse(["--output", "o", "--no\npe"])
    assert "\n" not in str(caught.value)


# --- the config file --------------------------------------------------------------------------

VALUES = {
    "runner": "DirectRunner",
    "output": "s3://bucket/prefix",
    "cluster": "eu-1",
    "context": "eu",
    "namespaces": ["a", "b"],
    "reasons": ["BackOff", "Failed"],
    "types": ["Warning"],
    "kinds": ["Pod"],
    "batch_size": 500,
    "batch_interval": 2.5,
    "snapshot_interval": 30,
    "resync_interval": 600,
    "event_ttl": 7200,
    "delivery": "no-duplicates",
    "shards": 4,
    "s3_endpoint": "https://s3:9000",
    "s3_region": "eu-central-1",
    "s3_profile": "ship",
    "s3_storage_class": "GLACIER_IR",
    "run_for": 60,
    "debug": True,
}
# Those that don't go together with these.
APART = {
    "kubeconfig": __file__,
    "exclude_namespaces": ["c"],
    "once": True,
    "demo": True,
}


def as_arguments(values: dict[str, Any]) -> list[str]:
    lists = {key: ",".join(value) if isinstance(value, list) else value for key, value in values.items()}
    return [f"--{key}" if value is True else f"--{key}={value}" for key, value in lists.items()]


@pytest.mark.parametrize("name", sorted({*parameters()} - {"config"}))
def test_every_parameter_is_a_key_of_the_file(tmp_path, name):
    action = parameters()[name]
    given: Any = next(iter(action.choices)) if action.choices else "7"
    if action.nargs == 0:
        given = True
    parsed = parse(["--config", config_file(tmp_path, **{name: given})])
    assert getattr(parsed, name) not in (None, False)
    assert getattr(parsed, name) == getattr(parse(as_arguments({name: given})), name)


@pytest.mark.parametrize("values", [VALUES, *({"output": "o", key: value} for key, value in APART.items())])
def test_the_keys_of_the_file_are_the_flags(tmp_path, values):
    assert config_of(parse(["--config", config_file(tmp_path, **values)])) == config_of(parse(as_arguments(values)))


def test_a_list_may_be_written_as_on_the_command_line(tmp_path):
    path = config_file(tmp_path, output="o", namespaces="a,b")
    assert config_of(parse(["--config", path])).namespaces == ("a", "b")


def test_the_command_line_goes_first_wherever_it_names_the_file(tmp_path):
    path = config_file(tmp_path, output="from-the-file", batch_size=7, shards=3)
    for arguments in (["--config", path, "--batch_size", "9"], ["--batch_size", "9", f"--config={path}"]):
        config = config_of(parse(arguments))
        assert (config.batch_size, config.shards, config.store.output) == (9, 3, "from-the-file")


def test_a_file_may_be_json_and_may_be_empty(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"output": "o", "batch_size": 7}))
    assert config_of(parse(["--config", str(path)])).batch_size == 7
    path.write_text("# nothing yet\n")
    assert config_of(parse(["--config", str(path), "--output", "o"])).batch_size == 1000


def test_false_and_null_in_a_file_are_as_if_not_given(tmp_path):
    path = config_file(tmp_path, output="o", once=False, demo=None, namespaces=None)
    assert config_of(parse(["--config", path])) == config_of(parse(["--output", "o"]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("outptu: o", "unrecognized arguments: --outptu=o"),
        ("batch-size: 7", "unrecognized arguments: --batch-size=7"),
        ("output: o\nbatch_size: many", "argument --batch_size: expected a whole number of 1 or more, got 'many'"),
        ("output: true", "argument --output: expected one argument"),
        ("once: 'yes'\noutput: o", "argument --once"),
        ("- a", "expected keys and values, got list"),
        ("just text", "expected keys and values, got str"),
        ("a: [", "while parsing"),
        ("output: [", "config.yaml: "),
        ("\0", "config.yaml: "),
        ("config: other.yaml\noutput: o", "config"),
        ("help: true\noutput: o", "help"),
        ("7: x\noutput: o", "unrecognized arguments: --7=x"),
    ],
)
def test_a_file_that_is_wrong_is_one_line(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        config_of(parse(["--config", str(path)]))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text_is_one_line(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(b"output: \xff\xfe")
    with pytest.raises(UsageError, match=r"config\.yaml: "):
        parse(["--config", str(path)])
