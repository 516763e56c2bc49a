"""What a person sees of a running job."""

from __future__ import annotations

import io
import types

import pytest

from runners import display as display_module
from runners.display import Display
from runners.history import Epoch
from transforms.types import Position, Progress, Segment, Target


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_000.0 + self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(display_module, "time", clock)
    return clock


def epoch(clock: Clock, read: int, dead: int = 0) -> Epoch:
    made = Epoch(int((clock.time() - 0.5) * 1e6))
    made.progress["prod"] = [Progress(Target("prod", "events"), Position(), read, [])]
    made.segments["prod"] = [Segment("p", read, "c", 1_000_000)]
    if dead:
        made.dead["prod"] = {"d": dead}
    return made


READERS = types.SimpleNamespace(requests=17)


def test_a_log_gets_a_line_now_and_then_and_the_last_state(clock):
    out = io.StringIO()
    display = Display(READERS, out)
    for _ in range(3):
        display.epoch(epoch(clock, 1500))
        clock.now += 4
    display.close()
    first, last = out.getvalue().splitlines()
    assert first == (
        "0 s: 1,500 objects read, 1,500 records written in 1 files (1.0 MB), epoch 1 took 0.5 s, 17 API requests"
    )
    assert last.startswith("12 s: 4,500 objects read, 4,500 records written in 3 files (3.0 MB), epoch 3 took ")


def test_dead_letters_can_t_be_overlooked(clock):
    out = io.StringIO()
    Display(READERS, out).epoch(epoch(clock, 5, dead=2))
    assert out.getvalue().endswith(", 2 DEAD LETTERS\n")


def test_a_terminal_has_one_line_that_is_kept_current(clock):
    out = Terminal()
    display = Display(READERS, out)
    display.epoch(epoch(clock, 5))
    display.epoch(epoch(clock, 5))
    display.close()
    assert out.getvalue().count("\n") == 1
    assert out.getvalue().count("\r\x1b[K") == 2


def test_who_did_nothing_says_nothing(clock):
    for out in (io.StringIO(), Terminal()):
        Display(READERS, out).close()
        assert out.getvalue() == ""
