"""The seeded story that the demo cluster plays: an estate, a bad quarter of a minute, then smaller incidents for ever.

Deterministic: the same seed gives the same sequence of writes, uids and names with the same clock. Acts run interleaved
in one thread, by the story's own time; only `sleep` and `clock` touch real time.
"""

from __future__ import annotations

import datetime
import heapq
import itertools
import random
import threading
from collections.abc import Callable

from pipeline.demo import acts
from pipeline.demo.acts import Act, Stage
from pipeline.demo.estate import Estate, build
from pipeline.demo.recorder import Recorder
from pipeline.demo.store import Store, utc_now

Clock = Callable[[], datetime.datetime]
Sleep = Callable[[float], object]

# The incidents begin while the last scenes still play.
_INCIDENTS_FROM_S = 12.0


class Story:
    """A story over a store: building an estate is done when the constructor returns, `run` plays."""

    def __init__(self, store: Store, seed: int = 1, clock: Clock = utc_now) -> None:
        rng = random.Random(seed)
        self._estate = Estate(store, rng, clock)
        self._stage = Stage(self._estate, Recorder(store, rng, clock), rng, self._spawn)
        self._now_s = 0.0
        self._order = itertools.count()
        self._due: list[tuple[float, int, Act]] = []
        build(self._estate)
        acts.past_hour(self._stage)
        self._script()

    def run(self, stop: threading.Event, sleep: Sleep | None = None, speed: float = 1.0) -> None:
        """Play until `stop` is set; `sleep` (default: wait for `stop`) pauses for seconds, `speed` divides them."""
        sleep = sleep if sleep is not None else stop.wait
        while not stop.is_set():
            due_s, _, act = heapq.heappop(self._due)
            if due_s > self._now_s:
                sleep((due_s - self._now_s) / speed)
                self._now_s = due_s
                if stop.is_set():
                    return
            for pause_s in act:
                self._start(act, pause_s)
                break

    def _spawn(self, act: Act) -> None:
        self._start(act, 0.0)

    def _start(self, act: Act, in_s: float) -> None:
        heapq.heappush(self._due, (self._now_s + in_s, next(self._order), act))

    def _script(self) -> None:
        """The first quarter of a minute."""
        stage, workloads = self._stage, self._estate.workloads
        checkout, cart, ledger = workloads["shop/checkout"], workloads["shop/cart"], workloads["payments/ledger"]
        for at_s, act in (
            (0.2, acts.chatter(stage)),
            (0.3, acts.scale_up(stage, cart, 4)),
            (1.0, acts.bad_rollout(stage, checkout, "2.4.0-rc1")),
            (1.5, acts.fail_to_scale(stage, 14)),
            (2.0, acts.run_job(stage)),
            (3.0, acts.canary_service(stage, checkout)),
            (4.5, acts.drain(stage, "worker-2")),
            (7.0, acts.crash_loop(stage, ledger, 5, out_of_memory=True)),
            (8.0, acts.vanish(stage, workloads["shop/storefront"])),
            (9.5, acts.roll_out(stage, workloads["payments/gateway"], "3.0.3")),
            (10.5, acts.vanish(stage, workloads["monitoring/prometheus"])),
            (12.0, acts.expire(stage, 12)),
            (13.0, acts.run_job(stage)),
            (_INCIDENTS_FROM_S, self._incidents()),
        ):
            self._start(act, at_s)

    def _incidents(self) -> Act:
        """Smaller incidents, one after another, for ever; now and then one of the large ones."""
        stage, rng, estate = self._stage, self._stage.rng, self._estate
        for number in itertools.count(1):
            name = rng.choice(sorted(estate.workloads))
            workload = estate.workloads[name]
            rollable = workload.owner["kind"] == "ReplicaSet"
            version = f"{workload.app.version.split('-')[0].split('+')[0]}-r{number}"
            incidents: list[tuple[int, Act]] = [
                (6, acts.flap_probe(stage, workload, rng.randrange(3, 9))),
                (4, acts.crash_loop(stage, workload, rng.randrange(2, 5), out_of_memory=rng.random() < 0.5)),
                (3, acts.run_job(stage)),
                (3, acts.chatter(stage)),
                (3, acts.vanish(stage, workload)),
                (2, acts.fail_to_scale(stage, 6)),
                (2, acts.expire(stage, 5)),
                (1, acts.drain(stage, rng.choice(sorted(estate.nodes)))),
                (1, acts.scale_up(stage, estate.workloads["shop/cart"], rng.randrange(3, 7))),
                (1, acts.canary_service(stage, workload)),
            ]
            if rollable:
                incidents.append((3, acts.roll_out(stage, workload, version)))
            if rollable and workload.replicas > 1:
                incidents.append((1, acts.bad_rollout(stage, workload, version)))
            weights = [weight for weight, _ in incidents]
            self._spawn(rng.choices([act for _, act in incidents], weights)[0])
            yield rng.uniform(0.3, 1.1)


def play(
    store: Store,
    seed: int = 1,
    stop: threading.Event | None = None,
    *,
    clock: Clock = utc_now,
    sleep: Sleep | None = None,
    speed: float = 1.0,
) -> None:
    """Build the estate, then play until `stop` is set."""
    Story(store, seed, clock).run(stop if stop is not None else threading.Event(), sleep, speed)
