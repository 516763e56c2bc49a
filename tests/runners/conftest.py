"""Fixtures of the jobs that runners' tests start on the real servers."""

from tests.real.conftest import jobs, local

__all__ = ["jobs", "local"]
