# Users need `make demo` and nothing but Python 3.11 or newer; `make test` also needs Go and builds real servers.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUTPUT ?= demo-output
SOURCES := pipeline transforms runners
PYTEST_ARGS ?=

.PHONY: setup demo test check format proto servers bench lock clean

setup: $(VENV)/.ready  ## .venv with everything that the job needs, pinned

$(VENV)/.ready: requirements.lock setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "expected Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) -V 2>&1); set PYTHON=" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready requirements-dev.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements-dev.lock
	@touch $@

demo: setup  ## runs the job on an embedded demo cluster for 20 seconds; OUTPUT=dir says where to
	$(BIN)/python -m pipeline --runner DirectRunner --demo --output $(OUTPUT) --batch_interval 2 --run_for 20
	@$(BIN)/python -m pipeline.demo.tour $(OUTPUT)

test: $(VENV)/.ready-dev servers  ## all tests; the servers that they need are built first, and cached
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(VENV)/.ready-dev  ## format, lint, types, import rules, generated code
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(addprefix -p ,$(SOURCES))
	$(BIN)/lint-imports
	$(BIN)/python -m tests.check_proto

format: $(VENV)/.ready-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: $(VENV)/.ready-dev  ## generates the code of proto/record.proto
	$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=proto/kubehistory --pyi_out=proto/kubehistory proto/record.proto

servers: $(VENV)/.ready-dev  ## kube-apiserver, etcd and an S3 server for the tests, built with Go outside of the checkout
	$(BIN)/python -m tests.servers.build

bench: $(VENV)/.ready-dev  ## throughput, cost and size, as JSON
	$(BIN)/python -m tests.bench

lock:  ## writes the lock files anew
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet setuptools==84.2.1 --requirement requirements.txt
	(head -1 requirements.lock; .venv-lock/bin/pip freeze --all | grep -v '^pip==') > .lock && mv .lock requirements.lock
	.venv-lock/bin/pip install --quiet --requirement requirements-dev.txt
	(head -1 requirements-dev.lock; .venv-lock/bin/pip freeze --all | grep -v '^pip==' | grep -vxFf requirements.lock) > .lock \
	  && mv .lock requirements-dev.lock
	rm -rf .venv-lock

clean:
	rm -rf $(VENV) demo-output .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
