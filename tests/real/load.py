"""A cluster that is at work: Events that are created and counted on, at a steady rate, by a seeded generator."""

import random
import threading
import time
import uuid
from collections import deque
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import urllib3

from tests.servers import manifests
from tests.servers.api import Api, ApiError
from tests.servers.manifests import Object

_RECENT = 200  # Events that may still be counted on


class Load:
    """Creates Events about made-up pods and lets the counts of the newest grow, while it is entered.

    What an API server that is down has not taken is tried again until it is: once the load has ended, `counts` has what
    is stored, no more and no less.

    Args:
        rate: requests a second.
        hours: the Events' times are of now or of up to so many hours ago, so that as many partitions are written to.
        patches: the share of them that let a count grow.
        pods: how many pods the Events are about.
    """

    def __init__(
        self,
        api: Api,
        namespace: str,
        seed: str,
        *,
        rate: float = 100.0,
        hours: int = 0,
        patches: float = 0.3,
        pods: int = 20,
    ) -> None:
        self.counts: dict[str, int] = {}
        self._api, self._namespace = api, namespace
        self._random = random.Random(seed)
        self._rate, self._hours, self._patches = rate, hours, patches
        self._pods = manifests.made_up_pods(pods, namespace)
        self._recent: deque[Object] = deque(maxlen=_RECENT)
        self._ending = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        while not self.counts and self._thread.is_alive():
            time.sleep(0.01)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        if self._failure is not None and kind is None:
            raise self._failure

    def _run(self) -> None:
        started, done = time.monotonic(), 0
        try:
            while not self._ending.wait(max(0.0, started + done / self._rate - time.monotonic())):
                done += 1
                if self._recent and self._random.random() < self._patches:
                    self._count_on(self._random.choice(self._recent))
                else:
                    self._create()
        except BaseException as error:
            self._failure = error

    def _create(self) -> None:
        pod = self._random.choice(self._pods)
        name = f"{pod['name']}.{uuid.UUID(int=self._random.getrandbits(128)).hex[:16]}"
        ago = timedelta(hours=self._random.randint(0, self._hours))
        event = manifests.event(pod, name, time=(datetime.now(UTC) - ago).strftime("%Y-%m-%dT%H:%M:%SZ"))
        try:
            stored = self._persist(lambda: self._api.create(event))
        except ApiError as error:
            if error.status != 409:  # else the answer to an earlier try was lost
                raise
            stored = self._persist(lambda: self._api.get(event))
        self._recent.append(stored)
        self.counts[stored["metadata"]["uid"]] = 1

    def _count_on(self, event: Object) -> None:
        uid = event["metadata"]["uid"]
        count = self.counts[uid] + self._random.randint(1, 3)
        self._persist(lambda: self._api.patch_event_count(event, count))
        self.counts[uid] = count

    def _persist(self, request: Any) -> Any:
        deadline = time.monotonic() + 60
        while True:
            try:
                return request()
            except (urllib3.exceptions.HTTPError, OSError, ApiError) as error:
                passing = not isinstance(error, ApiError) or error.status >= 500 or error.status in (401, 403, 429)
                if not passing or time.monotonic() > deadline:
                    raise
            time.sleep(0.05)
