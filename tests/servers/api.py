"""A thin client of the API server for tests: dicts in, dicts out, and Events by the thousand.

It is independent of the job's own client on purpose, and it ignores the proxy and certificate variables of the
environment.
"""

import http.client
import json
import ssl
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import urllib3

from tests.servers import manifests
from tests.servers.manifests import Object

_MERGE_PATCH = "application/merge-patch+json"


class ApiError(RuntimeError):
    """The API server answered something else than success; `status` is the HTTP code."""

    def __init__(self, status: int, what: str, message: str) -> None:
        super().__init__(f"{what}: {status} {message}")
        self.status = status


# What the API server answered about a stored Event: its resourceVersion and count.
Stored = tuple[str, int]


class Api:
    """A client with one user's rights; may be used by several threads."""

    def __init__(self, url: str, token: str, ca: Path | None = None) -> None:
        self._url, self._ca = url, ca
        self._headers = {"Authorization": f"Bearer {token}"}
        self._pool = urllib3.PoolManager(
            maxsize=16, retries=False, headers=self._headers, ca_certs=str(ca) if ca else None
        )

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        timeout: float = 60.0,
    ) -> Any:
        """The JSON answer (or text) to one request; raises ApiError, or what urllib3 raises."""
        response = self._pool.request(
            method,
            self._url + _with_query(path, query),
            body=None if body is None else json.dumps(body),
            headers={**self._headers, "Content-Type": content_type},
            timeout=timeout,
        )
        if response.status >= 300:
            raise ApiError(response.status, f"{method} {path}", response.data.decode())
        is_json = response.headers.get("Content-Type", "").startswith("application/json")
        return response.json() if is_json else response.data.decode()

    def create(self, obj: Object) -> Object:
        """Creates the object and then, if it has a status, sets that as a controller would; returns what is stored."""
        stored: Object = self.request("POST", _collection_of(obj), obj)
        if "status" in obj:
            stored = self.patch(stored, {"status": obj["status"]}, subresource="status")
        return stored

    def define(self, crd: Object) -> None:
        """Makes sure that the custom resource exists and is served."""
        try:
            self.create(crd)
        except ApiError as error:
            if error.status != 409:
                raise
        spec, deadline = crd["spec"], time.monotonic() + 10
        while True:
            try:
                self.list(spec["names"]["plural"], api_version=f"{spec['group']}/{spec['versions'][0]['name']}")
                return
            except ApiError as error:
                if error.status != 404 or time.monotonic() > deadline:
                    raise
            time.sleep(0.05)

    def get(self, obj: Object) -> Object:
        """The object as it is stored now."""
        found: Object = self.request("GET", _path_of(obj))
        return found

    def patch(self, obj: Object, patch: Object, subresource: str = "") -> Object:
        """Merges `patch` into the object and returns what is stored."""
        path = _path_of(obj) + (f"/{subresource}" if subresource else "")
        stored: Object = self.request("PATCH", path, patch, content_type=_MERGE_PATCH)
        return stored

    def delete(self, obj: Object) -> None:
        """Deletes the object at once: without a kubelet, a pod with a grace period would stay for ever."""
        self.request("DELETE", _path_of(obj), {"gracePeriodSeconds": 0})

    def delete_all(self, resource: str, namespace: str, api_version: str = "v1") -> None:
        """Deletes all objects of a resource (its plural name) in a namespace."""
        self.request("DELETE", collection(resource, namespace, api_version), {"gracePeriodSeconds": 0})

    def list(self, resource: str, namespace: str = "", api_version: str = "v1", **query: str) -> list[Object]:
        """All objects of a resource (its plural name), in a namespace or in all, read in pages."""
        path, items, more = collection(resource, namespace, api_version), list[Object](), ""
        while True:
            page = self.request("GET", path, query={"limit": "5000", "continue": more, **query})
            items += page["items"]
            more = page["metadata"].get("continue", "")
            if not more:
                return items

    def watch(
        self,
        resource: str,
        namespace: str = "",
        api_version: str = "v1",
        *,
        resource_version: str = "",
        seconds: int = 10,
    ) -> Iterator[Object]:
        """The watch's messages, as they come, until the server ends it, by itself or after `seconds`."""
        query = {"watch": "1", "resourceVersion": resource_version, "timeoutSeconds": str(seconds)}
        path = collection(resource, namespace, api_version)
        response = self._pool.request(
            "GET", self._url + _with_query(path, query), preload_content=False, timeout=seconds + 30
        )
        try:
            if response.status != 200:
                raise ApiError(response.status, f"WATCH {path}", response.data.decode())
            rest = b""
            for chunk in response.stream(amt=None):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from map(json.loads, lines)
        finally:
            response.close()

    def allowed(self, rule: Mapping[str, Any], namespace: str = "") -> bool:
        """Whether this user may do what the RBAC rule gives, in a namespace or everywhere.

        The rule's first verb, group and resource are asked for.
        """
        attributes = {"verb": rule["verbs"][0], "group": rule["apiGroups"][0], "resource": rule["resources"][0]}
        attributes |= {"namespace": namespace} if namespace else {}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        try:
            answer = self.request("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
        except ApiError as error:
            if error.status == 401:  # the user itself is not known yet
                return False
            raise
        return bool(answer["status"]["allowed"])

    def patch_event_count(self, event: Object, count: int) -> Object:
        """A recorder's repeat of a core/v1 Event: the count grows and lastTimestamp moves; returns what is stored."""
        return self.patch(event, {"count": count, "lastTimestamp": manifests.timestamp()})

    def create_events(
        self,
        n: int,
        *,
        namespace: str,
        pods: int | Sequence[Object] = 100,
        rate: float | None = None,
        threads: int = 8,
        into: dict[str, Stored] | None = None,
        **content: Any,
    ) -> dict[str, Stored]:
        """Creates `n` core/v1 Events about the pods in turn and returns what the API server answered, by UID:
        resourceVersion and count.

        Args:
            namespace: where the Events are created.
            pods: the pods that they are about: that many made-up ones, or stored objects or references.
            rate: Events a second; None is as fast as it goes.
            threads: the connections used.
            into: is filled and returned, so that another thread can look on, and so that what was answered is there
                after an error.
            content: arguments of `manifests.event`.

        Raises what the first failing request raised, when all threads have stopped. That request's Event may be stored
        or not.
        """
        stored: dict[str, Stored] = {} if into is None else into
        about = manifests.made_up_pods(pods, namespace) if isinstance(pods, int) else list(pods)
        call, started, failures = uuid.uuid4().hex[:8], time.monotonic(), list[BaseException]()

        def body(i: int) -> bytes:
            pod = about[i % len(about)]
            name = f"{manifests.reference(pod)['name']}.{call}{i:08x}"
            return json.dumps(manifests.event(pod, name, namespace=namespace, **content)).encode()

        def work(first: int) -> None:
            connection = self._connection()
            try:
                for i in range(first, n, threads):
                    if failures:
                        return
                    if rate is not None:
                        time.sleep(max(0.0, started + i / rate - time.monotonic()))
                    answer = self._post(connection, collection("events", namespace), body(i))
                    stored[answer["metadata"]["uid"]] = (answer["metadata"]["resourceVersion"], answer["count"])
            except BaseException as error:
                failures.append(error)
            finally:
                connection.close()

        workers = [threading.Thread(target=work, args=(first,)) for first in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if failures:
            raise failures[0]
        return stored

    def _connection(self) -> http.client.HTTPConnection:
        parts = urlsplit(self._url)
        if parts.scheme == "http":
            return http.client.HTTPConnection(parts.netloc, timeout=60)
        return http.client.HTTPSConnection(
            parts.netloc, timeout=60, context=ssl.create_default_context(cafile=self._ca)
        )

    def _post(self, connection: http.client.HTTPConnection, path: str, body: bytes) -> Any:
        connection.request("POST", path, body, {**self._headers, "Content-Type": "application/json"})
        response = connection.getresponse()
        data = response.read()
        if response.status != 201:
            raise ApiError(response.status, f"POST {path}", data.decode())
        return json.loads(data)


def collection(resource: str, namespace: str = "", api_version: str = "v1") -> str:
    """The path of a resource's objects, in a namespace or in all."""
    root = f"/api/{api_version}" if "/" not in api_version else f"/apis/{api_version}"
    return f"{root}/namespaces/{namespace}/{resource}" if namespace else f"{root}/{resource}"


def _collection_of(obj: Object) -> str:
    kind = obj["kind"].lower()
    plural = f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}es" if kind.endswith("s") else f"{kind}s"
    return collection(plural, obj["metadata"].get("namespace", ""), obj["apiVersion"])


def _path_of(obj: Object) -> str:
    return f"{_collection_of(obj)}/{obj['metadata']['name']}"


def _with_query(path: str, query: Mapping[str, str] | None) -> str:
    present = {key: value for key, value in (query or {}).items() if value}
    return f"{path}?{urlencode(present)}" if present else path
