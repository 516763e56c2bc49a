"""Where things are in the sink."""

import pytest

from transforms import codec, layout


def test_every_path_is_where_the_description_says() -> None:
    assert layout.commit("prod", 17) == "_state/cluster=prod/commits/0000000017.json.gz"
    assert layout.archive("prod", 1, 64) == "_state/cluster=prod/chain/0000000001-0000000064.json.gz"
    assert layout.facts("prod", "0123") == "_state/cluster=prod/facts/0123.msgpack.gz"
    assert layout.facts("prod", "") == "_state/cluster=prod/facts/"
    marker = layout.open_marker("cluster=prod/dt=2026-01-31/hour=23")
    assert marker == "_state/cluster=prod/open/dt=2026-01-31,hour=23"
    dead = layout.dead_letters("prod", 1_769_900_400_000_000, "abc")
    assert dead == "_dead/cluster=prod/dt=2026-01-31/abc.jsonl"


@pytest.mark.parametrize("number", [1, 64, 9_999_999_999])
def test_a_commits_path_says_its_number(number: int) -> None:
    assert layout.commit_number(layout.commit("prod", number)) == number


def test_an_archives_path_says_its_span() -> None:
    assert layout.archive_span(layout.archive("prod", 65, 4160)) == (65, 4160)


@pytest.mark.parametrize("cluster", ["prod", "a/b c", "prod,eu=1", "über"])
def test_a_marker_says_its_partition_whatever_the_clusters_name(cluster: str) -> None:
    partition = codec.partition(cluster, 1_769_900_400_000_000)
    assert layout.opened_partition(layout.open_marker(partition)) == partition


def test_paths_sort_as_their_numbers_do() -> None:
    numbers = [1, 2, 9, 10, 99, 100, 65_536]
    assert sorted(layout.commit("prod", number) for number in numbers) == [layout.commit("prod", n) for n in numbers]
