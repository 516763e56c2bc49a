"""Installs the job's packages; the generated schema becomes `kubehistory`, since `proto` is proto-plus's name."""

from pathlib import Path

from setuptools import setup

setup(
    name="kube-history",
    version="0.1.0",
    description="Keeps the history of a Kubernetes cluster's Events and Services",
    python_requires=">=3.11",
    packages=["pipeline", "pipeline.demo", "transforms", "runners", "kubehistory"],
    package_dir={"kubehistory": "proto/kubehistory"},
    install_requires=[
        line
        for line in Path(__file__).with_name("requirements.txt").read_text().splitlines()
        if line and line[0] != "#"
    ],
)
