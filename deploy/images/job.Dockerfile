# The job: `python -m pipeline`, and beside a Flink TaskManager the worker pool (same image, another command).
#   docker build --file deploy/images/job.Dockerfile --tag kube-history:0.1.0 .
FROM python:3.11-slim-bookworm

WORKDIR /opt/kube-history
COPY requirements.txt requirements.lock setup.py ./
RUN pip install --no-cache-dir --disable-pip-version-check --requirement requirements.lock
COPY proto proto
COPY transforms transforms
COPY runners runners
COPY pipeline pipeline
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation . \
    && python -m compileall -q -j 0 /usr/local/lib/python3.11/site-packages

ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /tmp
USER 10001:10001
ENTRYPOINT ["python", "-m", "pipeline"]
