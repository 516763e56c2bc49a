"""A real Kubernetes control plane, as much of one as Events need: etcd and kube-apiserver, nothing else.

No controller and no kubelet runs: what a test does not create is not there, and nothing is cleaned up behind its back.
"""

import base64
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import urllib3
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.servers.api import Api, ApiError
from tests.servers.build import binary
from tests.servers.process import Process, ServerError, on_free_port

# Users that always exist, with their group. The agent has no rights, like a job whose RBAC was forgotten.
_USERS = {"admin": "system:masters", "agent": "agents", "reader": "readers"}
_READ_ALL = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["get", "list", "watch"]}]


class ControlPlane:
    """etcd and kube-apiserver on free loopback ports, in a folder of their own that goes with them.

    Entering it returns when the API server is ready and the system's namespaces exist (about 3 s).

    Args:
        event_ttl: how long the API server keeps an Event, as a Go duration.
        compaction_interval: how often the API server compacts etcd by itself, as a Go duration.
        flags: more flags for kube-apiserver.
    """

    def __init__(self, event_ttl: str = "1h", compaction_interval: str = "5m", flags: Sequence[str] = ()) -> None:
        self._flags = [f"--event-ttl={event_ttl}", f"--etcd-compaction-interval={compaction_interval}", *flags]
        self._tokens = {user: f"{user}-token" for user in _USERS}
        self._etcd: Process | None = None
        self._apiserver: Process | None = None
        self._clients: dict[str, Api] = {}
        self._http = urllib3.PoolManager(retries=False)

    def __enter__(self) -> Self:
        self._dir = Path(tempfile.mkdtemp(prefix="control-plane-"))
        try:
            _write_signing_key(self._dir / "sa.key")
            lines = [f"{self._tokens[user]},{user},{user},{group}\n" for user, group in _USERS.items()]
            (self._dir / "tokens.csv").write_text("".join(lines))
            on_free_port(self._start_etcd_on)
            on_free_port(self._start_apiserver_on)
            self.grant("reader", _READ_ALL)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in (self._apiserver, self._etcd):
            if process is not None:
                process.kill()  # nothing that they hold is needed again
        shutil.rmtree(self._dir, ignore_errors=True)

    @property
    def url(self) -> str:
        """The API server's URL, https://127.0.0.1:PORT; the same over restarts."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def ca(self) -> Path:
        """The certificate file that the API server's certificate is verified by."""
        return self._dir / "certs" / "apiserver.crt"

    @property
    def kubeconfig(self) -> Path:
        """A kubeconfig with the context `admin` current, and one context for each other user."""
        return self.kubeconfig_for("admin")

    @property
    def api(self) -> Api:
        """A client with all rights."""
        return self.api_as("admin")

    def api_as(self, user: str) -> Api:
        """A client with the rights of `admin`, `agent`, `reader` or a user of `add_user`."""
        if user not in self._clients:
            self._clients[user] = Api(self.url, self.token(user), self.ca)
        return self._clients[user]

    def token(self, user: str = "admin") -> str:
        """The user's bearer token."""
        return self._tokens[user]

    def kubeconfig_for(self, context: str, server: str | None = None) -> Path:
        """Writes a kubeconfig with `context` current, whose server is `server` (a proxy, http or https) or this one."""
        server = server or self.url
        cluster = {"server": server}
        if server.startswith("https:"):
            cluster["certificate-authority"] = str(self.ca)
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": user, "user": {"token": token}} for user, token in self._tokens.items()],
            "contexts": [{"name": user, "context": {"cluster": "test", "user": user}} for user in self._tokens],
            "current-context": context,
        }
        name = f"{context}-{server.replace('://', '-').replace(':', '-').strip('/')}.kubeconfig"
        path = self._dir / name
        path.write_text(yaml.safe_dump(content))
        return path

    def grant(self, user: str, rules: Sequence[Mapping[str, Any]]) -> None:
        """Gives a static user the rules of a ClusterRole; returns when the API server honours them."""
        self._bind(user, {"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": user}, rules)

    def add_user(self, name: str, rules: Sequence[Mapping[str, Any]] = (), namespace: str = "") -> str:
        """Makes a user with just these RBAC rules and returns its token; it is a context of kubeconfigs written later.

        The rules hold in the namespace, or everywhere if none is given.

        The user is a service account of kube-system, the kind of identity that a job in the cluster has.
        """
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": "kube-system"}}
        self.api.create(account)
        path = f"/api/v1/namespaces/kube-system/serviceaccounts/{name}/token"
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        self._tokens[name] = self.api.request("POST", path, request)["status"]["token"]
        subject = {"kind": "ServiceAccount", "name": name, "namespace": "kube-system"}
        self._bind(name, subject, rules, namespace)
        return self._tokens[name]

    def stop_apiserver(self) -> None:
        """Stops the API server gracefully (SIGTERM); open watches end cleanly."""
        if self._apiserver is not None:
            self._apiserver.stop()
            self._apiserver = None

    def kill_apiserver(self) -> None:
        """Kills the API server (SIGKILL); open watches break."""
        if self._apiserver is not None:
            self._apiserver.kill()
            self._apiserver = None

    def start_apiserver(self) -> None:
        """Starts the API server on its port and returns when it is ready; does nothing if it runs."""
        if self._apiserver is not None and self._apiserver.alive():
            return
        argv: list[str | Path] = [binary("kube-apiserver"), f"--etcd-servers=http://127.0.0.1:{self._etcd_port}"]
        argv += ["--bind-address=127.0.0.1", f"--secure-port={self.port}", f"--cert-dir={self._dir / 'certs'}"]
        argv += ["--service-cluster-ip-range=10.0.0.0/16", "--endpoint-reconciler-type=none"]
        argv += [f"--service-account-issuer={self.url}", f"--service-account-key-file={self._dir / 'sa.key'}"]
        argv += [f"--service-account-signing-key-file={self._dir / 'sa.key'}"]
        argv += [f"--token-auth-file={self._dir / 'tokens.csv'}", "--authorization-mode=RBAC"]
        # Without a controller manager no service account named default exists, and its plugin would refuse every pod.
        argv += ["--disable-admission-plugins=ServiceAccount", "--allow-privileged", *self._flags]
        self._apiserver = Process(argv, self._dir / "apiserver.log")
        self._apiserver.wait_until(self._apiserver_ready)

    def compact(self) -> int:
        """Compacts etcd to its current revision and returns that; what is older is gone when this returns."""
        revision = self.revision()
        self._etcd_call("/v3/kv/compaction", {"revision": revision, "physical": True})
        return revision

    def revision(self) -> int:
        """etcd's current revision, which is the newest resourceVersion."""
        return int(self._etcd_call("/v3/maintenance/status", {})["header"]["revision"])

    def forget_events(self, namespace: str) -> None:
        """Removes a namespace's Events from etcd at once (the API server would take seconds for thousands).

        A watch sees them DELETED, as when their TTL ends.
        """
        start = f"/registry/events/{namespace}/".encode()
        end = start[:-1] + b"0"  # the first key after the prefix: "0" follows "/"
        self._etcd_call("/v3/kv/deleterange", {"key": _base64(start), "range_end": _base64(end)})

    def _start_etcd_on(self, port: int) -> None:
        self._etcd_port, url = port, f"http://127.0.0.1:{port}"
        argv: list[str | Path] = [binary("etcd"), f"--data-dir={self._dir / 'etcd'}", "--unsafe-no-fsync"]
        argv += [f"--listen-client-urls={url}", f"--advertise-client-urls={url}", "--log-level=warn"]
        argv += ["--listen-peer-urls=http://127.0.0.1:0"]
        # As kubeadm does, but oftener: without it the bookmarks of a resource that nobody changes tell nothing new.
        options = subprocess.run([binary("etcd"), "--help"], capture_output=True, text=True).stdout
        name = "watch-progress-notify-interval"
        argv += [f"--{name}=1s" if f"  --{name} " in options else f"--experimental-{name}=1s"]
        self._etcd = Process(argv, self._dir / "etcd.log")
        self._etcd.wait_until(self._etcd_ready)

    def _start_apiserver_on(self, port: int) -> None:
        self.port = port
        self._clients.clear()
        self.start_apiserver()

    def _etcd_ready(self) -> bool:
        try:
            return bool(self.revision())
        except (urllib3.exceptions.HTTPError, ServerError):
            return False

    def _apiserver_ready(self) -> bool:
        try:
            self.api.request("GET", "/readyz")
            # Readiness does not wait for the system's namespaces, and kube-system is the cluster's identity.
            self.api.request("GET", "/api/v1/namespaces/kube-system")
            return True
        except (urllib3.exceptions.HTTPError, ApiError, OSError):
            return False

    def _etcd_call(self, path: str, body: dict[str, Any]) -> Any:
        response = self._http.request("POST", f"http://127.0.0.1:{self._etcd_port}{path}", json=body, timeout=60)
        if response.status != 200:
            raise ServerError(f"expected etcd to answer {path}; it said {response.status} {response.data!r}")
        return response.json()

    def _bind(
        self, user: str, subject: dict[str, str], rules: Sequence[Mapping[str, Any]], namespace: str = ""
    ) -> None:
        api, kind = self.api, "Role" if namespace else "ClusterRole"
        metadata = {"name": f"test-{user}-{self.revision()}"} | ({"namespace": namespace} if namespace else {})
        role = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": metadata}
        api.create({**role, "kind": kind, "rules": list(rules)})
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": metadata["name"]}
        api.create({**role, "kind": f"{kind}Binding", "roleRef": reference, "subjects": [subject]})
        # The authorizer follows RBAC objects by a watch, a moment behind them.
        deadline = time.monotonic() + 10
        while not all(self.api_as(user).allowed(rule, namespace) for rule in rules):
            if time.monotonic() > deadline:
                raise ServerError(f"expected {user} to be granted {rules} within 10 s; it is still refused")
            time.sleep(0.02)


def _write_signing_key(path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    path.write_bytes(key.private_bytes(encoding, serialization.PrivateFormat.TraditionalOpenSSL, plain))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
