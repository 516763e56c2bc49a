"""The parameters of the streaming runners, of which some are Beam's own, and of many clusters."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import yaml
from apache_beam.options.pipeline_options import (
    FlinkRunnerOptions,
    GoogleCloudOptions,
    JobServerOptions,
    PipelineOptions,
    PortableOptions,
    PrismRunnerOptions,
)

from pipeline import options as ours
from pipeline.options import UsageError, config_of, parse
from runners.config import JobConfig
from transforms.kube import Cluster

FLINK = ("--runner=FlinkRunner", "--flink_master=flink:8081")


def configured(*arguments: str) -> JobConfig:
    return config_of(parse(["--output=/history", *arguments]))


def config_file(directory: Path, name: str, **values: Any) -> str:
    path = directory / name
    path.write_text(yaml.safe_dump(values))
    return f"--config={path}"


# Many clusters


def test_a_name_alone_takes_the_context_that_is_current_or_given(tmp_path: Path) -> None:
    assert configured("--cluster=prod").clusters == (Cluster("prod"),)
    assert configured("--cluster=prod", "--context=eu").clusters == (Cluster("prod", "", "eu"),)


def test_many_clusters_are_names_and_contexts_of_one_kubeconfig(tmp_path: Path) -> None:
    (tmp_path / "kubeconfig").touch()
    kubeconfig = str(tmp_path / "kubeconfig")
    config = configured("--cluster=eu=ctx-1", "--cluster=us=arn:aws:eks/a=b", f"--kubeconfig={kubeconfig}")
    assert config.clusters == (Cluster("eu", kubeconfig, "ctx-1"), Cluster("us", kubeconfig, "arn:aws:eks/a=b"))
    assert config.settings.clusters == config.clusters


def test_a_files_list_of_clusters_is_as_many_parameters_and_is_replaced_by_the_command_lines(tmp_path: Path) -> None:
    file = config_file(tmp_path, "a.yaml", cluster=["eu=one", "us=two"], namespaces=["a", "b"])
    assert [cluster.name for cluster in configured(file).clusters] == ["eu", "us"]
    assert configured(file).namespaces == ("a", "b")
    assert configured(file, "--cluster=asia=three").clusters == (Cluster("asia", "", "three"),)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--cluster=a", "--cluster=b"], "NAME=CONTEXT where there are many or contexts, got 'a'"),
        (["--cluster=a=x", "--cluster=b"], "got 'b'"),
        (["--cluster=a="], "got 'a='"),
        (["--cluster==x"], "got '=x'"),
        (["--cluster=a=x", "--cluster=a=y"], "one twice: a, a"),
        (["--cluster=a=x", "--context=y"], "NAME=CONTEXT or --context, got both"),
        (["--cluster=a=x", "--demo"], "NAME=CONTEXT or --demo, got both"),
    ],
)
def test_clusters_that_cannot_be_told_apart_are_refused(arguments: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        configured(*arguments)


# Profiles


def test_a_later_file_goes_before_an_earlier_one_and_the_command_line_before_both(tmp_path: Path) -> None:
    base = config_file(tmp_path, "base.yaml", batch_size=1, shards=2, batch_interval=3)
    profile = config_file(tmp_path, "flink.yaml", batch_size=10, shards=20, runner="FlinkRunner", flink_master="f:1")
    config = configured(base, profile, "--batch_size=100")
    assert (config.batch_size, config.shards, config.batch_interval_s, config.runner) == (100, 20, 3.0, "FlinkRunner")


# Streaming runners


def test_beams_own_options_pass_through_to_beam() -> None:
    given = parse(
        [
            *("--output=/x", *FLINK, "--parallelism=3", "--max_parallelism=64", "--job_name=history"),
            *("--flink_job_server_jar=/a.jar", "--job_endpoint=h:1", "--environment_type=EXTERNAL"),
            *("--environment_config=pool:50000", "--prism_location=/prism", "--job_server_java_launcher=/java"),
        ]
    )
    flink, portable = given.view_as(FlinkRunnerOptions), given.view_as(PortableOptions)
    assert (flink.flink_master, flink.flink_job_server_jar) == ("flink:8081", "/a.jar")
    assert (flink.parallelism, flink.max_parallelism) == (3, 64)
    assert (portable.job_endpoint, portable.environment_type) == ("h:1", "EXTERNAL")
    assert portable.environment_config == "pool:50000"
    assert given.view_as(GoogleCloudOptions).job_name == "history"
    assert given.view_as(PrismRunnerOptions).prism_location == "/prism"
    assert given.view_as(JobServerOptions).job_server_java_launcher == "/java"


def test_what_passes_through_is_declared_by_beam_and_not_by_us() -> None:
    mine, beams = argparse.ArgumentParser(), argparse.ArgumentParser()
    ours.HistoryOptions._add_argparse_args(mine)
    for options in (FlinkRunnerOptions, GoogleCloudOptions, JobServerOptions, PortableOptions, PrismRunnerOptions):
        options._add_argparse_args(beams)
    assert set(ours._BEAM_OPTIONS) <= {action.dest for action in beams._actions}
    assert not set(ours._BEAM_OPTIONS) & {action.dest for action in mine._actions}
    PipelineOptions([]).get_all_options()  # raises where one is declared twice


@pytest.mark.parametrize("wrong", ["--flink_version=1.19", "--flink_submit_uber_jar", "--parallelism=0", "--region=x"])
def test_other_options_of_beam_stay_mistakes(wrong: str) -> None:
    with pytest.raises(UsageError):
        configured(*FLINK, wrong)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--runner=FlinkRunner"], "expected --flink_master"),
        (["--runner=FlinkRunner", "--flink_master=[local]"], "expected --flink_master"),
        (["--runner=PortableRunner"], "expected --job_endpoint"),
        (["--runner=SparkRunner"], "DirectRunner, FlinkRunner, PortableRunner, PrismRunner, got 'SparkRunner'"),
        ([*FLINK, "--once"], "--once with --runner DirectRunner, got it with FlinkRunner"),
        ([*FLINK, "--run_for=5"], "--run_for with --runner DirectRunner"),
        ([*FLINK, "--demo"], "--demo with --runner DirectRunner"),
        (["--runner=PrismRunner", "--heartbeat_file=/x"], "--heartbeat_file with --runner DirectRunner"),
        ([*FLINK, "--delivery=no-duplicates"], "--delivery no-loss with --runner FlinkRunner"),
        ([*FLINK, "--state_backend=rocksdb"], "--state_backend_storage_path together"),
        ([*FLINK, "--state_backend=memory"], "invalid choice: 'memory'"),
        ([*FLINK, "--checkpointing_interval=0"], "whole number"),
    ],
)
def test_what_a_stream_cannot_do_or_do_without_is_said(arguments: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        configured(*arguments)


def test_a_heartbeat_file_is_the_direct_runners() -> None:
    assert configured("--heartbeat_file=/tmp/beat").heartbeat_file == "/tmp/beat"
    assert configured().heartbeat_file == ""
