"""A real S3 server: versitygw, a gateway over a directory that honours `If-None-Match: *`."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Self

import boto3
import urllib3
from botocore.config import Config

from tests.servers.build import binary
from tests.servers.process import Process, on_free_port


class S3Server:
    """versitygw on a free loopback port, over a folder of its own that goes with it.

    Entering it returns when it answers (about 0.1 s).
    """

    access_key = "test-access-key"
    secret_key = "test-secret-key"
    region = "us-east-1"

    def __init__(self) -> None:
        self._process: Process | None = None
        self._http = urllib3.PoolManager(retries=False)

    def __enter__(self) -> Self:
        self._dir = Path(tempfile.mkdtemp(prefix="s3-"))
        (self._dir / "data").mkdir()
        try:
            on_free_port(self._start_on)
            self.client = self.client_for()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self._dir, ignore_errors=True)

    @property
    def endpoint(self) -> str:
        """The server's URL, http://127.0.0.1:PORT; the same over restarts."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which an AWS SDK finds the server and its rights."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": self.region,
        }

    def client_for(self, endpoint: str | None = None) -> Any:
        """A boto3 client of this server, or of a proxy before it, that tries everything once."""
        return boto3.client(
            "s3",
            endpoint_url=endpoint or self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}, proxies={}),
        )

    def create_bucket(self, name: str) -> None:
        """Creates a bucket; the name has 3 letters or more."""
        self.client.create_bucket(Bucket=name)

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """The keys of all objects under a prefix, in order."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def read(self, bucket: str, key: str) -> bytes:
        """An object's bytes."""
        data: bytes = self.client.get_object(Bucket=bucket, Key=key)["Body"].read()
        return data

    def read_all(self, bucket: str, prefix: str = "") -> dict[str, bytes]:
        """All objects under a prefix, by key."""
        return {key: self.read(bucket, key) for key in self.keys(bucket, prefix)}

    def stop(self) -> None:
        """Stops the server (SIGTERM); what it holds stays."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def kill(self) -> None:
        """Kills the server (SIGKILL); what it holds stays."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def start(self) -> None:
        """Starts the server on its port and returns when it answers; does nothing if it runs."""
        if self._process is not None and self._process.alive():
            return
        argv: list[str | Path] = [binary("versitygw"), "--port", f"127.0.0.1:{self.port}", "--region", self.region]
        argv += ["--health", "/health", "--keep-alive", "posix", self._dir / "data"]
        keys = {"ROOT_ACCESS_KEY": self.access_key, "ROOT_SECRET_KEY": self.secret_key}
        self._process = Process(argv, self._dir / "s3.log", env={**os.environ, **keys})
        self._process.wait_until(self._ready)

    def _start_on(self, port: int) -> None:
        self.port = port
        self.start()

    def _ready(self) -> bool:
        try:
            return self._http.request("GET", f"{self.endpoint}/health", timeout=5).status == 200
        except urllib3.exceptions.HTTPError:
            return False
