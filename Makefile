# The targets for developers and CI. `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# An empty variable counts as not set.
HOST := $(or $(HOST),127.0.0.1)
PORT := $(or $(PORT),8080)
DEMO := $(or $(DEMO),artifacts/efficientnet-lite0)
# The SDK's interpreter: a CPython 3.7 on the path, or pyenv's.
PYTHON37 ?= $(shell ls -d $$(command -v python3.7 2>/dev/null | grep -v /shims/) \
	$${PYENV_ROOT:-$$HOME/.pyenv}/versions/3.7.*/bin/python3.7 2>/dev/null | head -n 1)

.PHONY: help demo linux install quantize develop test test-all check lint types python37 unit slow networks cards drain changes overload ecosystem image-test fuzz bench bench-all bench-lock ecosystem-lock lock screenshots proto lines clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: linux $(VENV)/.demo ## build the demo artifact, serve it, classify the shipped photos
	@$(BIN)/python scripts/demo.py --artifact $(DEMO) --host $(HOST) --port $(PORT)

linux:
	@test "$$(uname -s)" = Linux || { printf 'error: topfive serves on Linux only; this is %s\n  try: a container, as docs/docker.md says\n' "$$(uname -s)" >&2; exit 1; }

install: $(VENV)/.demo ## an environment with the service, the build and the demo network

quantize: $(VENV)/.quantize ## the same, with NNCF, which builds int8 for the CPU

develop: $(VENV)/.dev ## the environment of `make quantize`, with the dependencies of the tests

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: topfive needs Python 3.11 or newer; try: make PYTHON=python3.11 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: requirements/install.lock pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/install.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.quantize: requirements/quantize.lock $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/quantize.lock
	@touch $@

$(VENV)/.dev: requirements/dev.lock client/pyproject.toml $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e client
	@touch $@

$(VENV)/.fuzz: requirements/fuzz.lock $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/fuzz.lock
	@touch $@

.venv37/.ready: requirements/sdk37.lock
	$(PYTHON37) -m venv .venv37
	.venv37/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/sdk37.lock
	echo '$(CURDIR)/tests/magicmind_sim' > .venv37/lib/python3.7/site-packages/magicmind_sim.pth
	@touch $@

test: check python37 unit ## checks, then the quick tests, under both Pythons

test-all: test slow networks cards drain changes overload ## all tests but those of the images: an hour

check: lint types ## lint, format, types

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint Dockerfile

types: $(VENV)/.dev
	$(BIN)/mypy
	cd service/device_host && ../../$(BIN)/mypy --config-file ../../pyproject.toml --explicit-package-bases *.py
	cd service/tools/doctor/card && ../../../../$(BIN)/mypy --config-file ../../../../pyproject.toml --explicit-package-bases *.py

python37: $(VENV)/.dev ## the device host's tests under the SDK's CPython 3.7
	$(BIN)/vermin --quiet --no-tips --no-parse-comments --violations -t=3.7- service/device_host service/tools/doctor/card model_build/mlu/compiler
ifeq ($(PYTHON37),)
	@echo "SKIPPED: no CPython 3.7 here, so the device host's tests did not run under it; try: make test PYTHON37=/path/to/python3.7"
	@test -z "$$CI" || { echo "error: CI must run them"; exit 1; }
else
	$(MAKE) --no-print-directory .venv37/.ready
	.venv37/bin/python -m pytest -q -c tests/py37/pytest.ini tests/py37
endif

# Tests run in parallel, more than there are cores, since they also wait for processes and timers.
JOBS ?= 3
unit: $(VENV)/.dev $(if $(PYTHON37),.venv37/.ready)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal --durations 20 --durations-min 1

slow: $(VENV)/.dev .venv37/.ready ## tests that repeat a quicker test on other networks and cases
	$(BIN)/python -m pytest -m slow -n $(JOBS) --dist loadfile

networks: $(VENV)/.dev ## all published Caffe networks compared with OpenCV's dnn: minutes
	$(BIN)/python -m pytest -m large tests/model_build/test_caffe_published.py tests/tools/test_evaluation_trained.py tests/decoding/test_dct_scaling.py

cards: $(VENV)/.dev .venv37/.ready ## trained networks, every fault and switch on simulated cards: minutes
	$(BIN)/python -m pytest -m large tests/cards/test_cards.py tests/cards/test_card_switches.py tests/cards/test_cards_trained.py tests/tools/test_doctor_card.py tests/model_build/test_sweep.py tests/tools/test_bench_card.py

drain: $(VENV)/.dev ## SIGTERM under full load, hosts that hang, clients that disconnect: minutes
	$(BIN)/python -m pytest -m large tests/server/test_drain.py tests/server/test_workers.py tests/server/test_disconnects.py tests/server/test_stalls.py tests/server/test_grpc_drain.py tests/server/test_tls_drain.py

changes: $(VENV)/.dev .venv37/.ready ## ten changes of version under 64 clients, models that share a device: eight minutes
	$(BIN)/python -m pytest -m large tests/server/test_changes.py tests/server/test_fairness.py

overload: $(VENV)/.dev .venv37/.ready ## three and ten times the throughput of a simulated card: three minutes
	$(BIN)/python -m pytest -m large tests/server/test_overload.py

ecosystem: $(VENV)/.dev build/ecosystem-env/.ready build/perf-analyzer/.ready ## Triton's and KServe's clients and perf_analyzer against the service: minutes, as root
	ECOSYSTEM=1 $(BIN)/python -m pytest -m large tests/ecosystem/test_clients.py tests/ecosystem/test_perf_analyzer.py

build/ecosystem-env/.ready: tests/ecosystem/clients.lock | $(VENV)/.dev
	$(BIN)/python -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $<
	@touch $@

# perf_analyzer needs glibc 2.38: a Debian 13, which it is run in by chroot.
build/perf-analyzer/.ready: tests/ecosystem/perf_analyzer.lock | $(VENV)/.dev
	@test "$$(id -u)" = 0 && command -v debootstrap > /dev/null || { printf 'error: perf_analyzer runs in a Debian of its own\n  try: apt-get install debootstrap, and make ecosystem as root\n' >&2; exit 1; }
	rm -rf $(@D)
	mkdir -p $(@D)
	debootstrap --variant=minbase trixie $(CURDIR)/$(@D)/root http://deb.debian.org/debian > $(@D)/debootstrap.log
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --dest $(@D) --platform manylinux_2_38_x86_64 --only-binary :all: --no-deps --require-hashes -r $<
	$(BIN)/python -m zipfile -e $(@D)/perf_analyzer-*.whl $(@D)/root/opt
	chmod +x $(@D)/root/opt/perf_analyzer/bin/perf_analyzer
	@touch $@

ecosystem-lock: $(VENV)/.dev ## resolve the dependencies of Triton's and KServe's clients again
	$(BIN)/uv pip compile $(LOCK) --upgrade --python-version 3.11 --python-platform x86_64-manylinux_2_35 tests/ecosystem/clients.in -o tests/ecosystem/clients.lock

# Seconds for each target, and the folder of seeds in addition to those of tests/fuzz/seeds.
FUZZ_SECONDS ?= 600
FUZZ_DATA ?= $(or $(TOPFIVE_DATA),../shared/data)
FUZZ := -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=1024 -print_final_stats=1
fuzz: $(VENV)/.fuzz ## fuzz the decoders and parsers, FUZZ_SECONDS=600 for each target
	@mkdir -p build/fuzz/images build/fuzz/prototxt build/fuzz/caffemodel
	$(BIN)/python tests/fuzz/fuzz_images.py $(FUZZ) -max_len=20000 -artifact_prefix=build/fuzz/found-images- \
		build/fuzz/images tests/fuzz/seeds/images $(wildcard $(FUZZ_DATA)/torture)
	$(BIN)/python tests/fuzz/fuzz_prototxt.py $(FUZZ) -max_len=4000 -dict=tests/fuzz/prototxt.dict -artifact_prefix=build/fuzz/found-prototxt- \
		build/fuzz/prototxt tests/fuzz/seeds/prototxt $(wildcard $(FUZZ_DATA)/parser-fixtures/ok $(FUZZ_DATA)/parser-fixtures/legacy)
	$(BIN)/python tests/fuzz/fuzz_caffemodel.py $(FUZZ) -max_len=20000 -artifact_prefix=build/fuzz/found-caffemodel- \
		build/fuzz/caffemodel tests/fuzz/seeds/caffemodel $(wildcard $(FUZZ_DATA)/parser-fixtures/ok $(FUZZ_DATA)/parser-fixtures/legacy)

image-test: $(VENV)/.dev .venv37/.ready ## build and run both Docker images on stand-in bases: minutes, as root
	$(BIN)/topfive-build demo --output $(DEMO)
	$(BIN)/python docker/test_images.py --artifact $(DEMO) --sdk-environment .venv37

# The environments of the servers in the comparison.
PEERS := triton mosec litserve fastapi
MORE_PEERS := bentoml ray_serve
bench_env = $(1:%=build/bench-envs/%/.ready)
# Options of `python -m benchmarks`. BENCH='--rounds 1 --suites no-time' is a first look.
BENCH ?=
bench: $(VENV)/.dev .venv37/.ready $(call bench_env,$(PEERS)) ## compare with other servers, into benchmarks/RESULTS.md: 25 minutes
	$(BIN)/python -m benchmarks $(BENCH)

bench-all: $(VENV)/.dev .venv37/.ready $(call bench_env,$(PEERS) $(MORE_PEERS)) ## all servers and suites, 128 clients, growth: 2.5 hours
	$(BIN)/python -m benchmarks --all $(BENCH)

build/bench-envs/%/.ready: benchmarks/peers/%.lock
	$(BIN)/python -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $<
	@touch $@

bench-lock: $(VENV)/.dev ## resolve the peers' dependencies again
	grep -E '^(pillow|openvino|opencv-python-headless|cykooz-resizer|simplejpeg)==' requirements/cpu.lock | sed 's/ .*//' > build/bench-constraints
	for peer in $(PEERS) $(MORE_PEERS); do \
		$(BIN)/uv pip compile $(LOCK) --upgrade --python-version 3.11 --python-platform x86_64-manylinux_2_35 \
			$$(test $$peer = triton && echo --no-deps) -c build/bench-constraints benchmarks/peers/$$peer.in -o benchmarks/peers/$$peer.lock; \
	done

lock: $(VENV)/.dev ## resolve the dependencies again
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile $(LOCK) --upgrade --universal --python-version 3.11 --group backend --extra cpu --extra build --extra demo pyproject.toml -o requirements/install.lock
	@mkdir -p build
	# NNCF needs numpy below 2.5. Only the environments that have NNCF get it.
	grep -E '^[a-z].*==' requirements/install.lock | grep -v '^numpy==' | sed 's/ *\\$$//' > build/quantize-constraints
	$(BIN)/uv pip compile $(LOCK) --universal --python-version 3.11 --extra build --extra quantize -c build/quantize-constraints pyproject.toml -o requirements/quantize.lock
	$(BIN)/uv pip compile $(LOCK) --universal --python-version 3.11 --group backend --group dev --extra cpu --extra build --extra demo --extra parquet --extra plot --extra quantize -c build/quantize-constraints -c requirements/quantize.lock pyproject.toml -o requirements/dev.lock
	$(BIN)/uv pip compile $(LOCK) --universal --python-version 3.11 --extra cpu -c requirements/install.lock pyproject.toml -o requirements/cpu.lock
	$(BIN)/uv pip compile $(LOCK) --universal --python-version 3.11 --group backend -c requirements/install.lock -o requirements/backend.lock
	$(BIN)/uv pip compile $(LOCK) --upgrade --python-version 3.11 --python-platform x86_64-manylinux_2_28 --only-binary :all: --group mlu --extra cpu --extra build pyproject.toml -o requirements/mlu.lock
	$(BIN)/uv pip compile $(LOCK) --python-version 3.11 --python-platform linux --group fuzz -o requirements/fuzz.lock
	$(BIN)/uv pip compile $(LOCK) --python-version 3.7 --python-platform linux --group sdk37 -o requirements/sdk37.lock
LOCK := --quiet --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate

screenshots: $(VENV)/.dev ## pictures of the page in Chromium, in build/screenshots
	$(BIN)/topfive-build demo --output $(DEMO)
	$(BIN)/python -m scripts.screenshots --artifact $(DEMO) --output build/screenshots

proto: $(VENV)/.dev ## compile service/api/grpc/inference.proto
	$(BIN)/python scripts/write_descriptor.py

lines: ## the structure in figures: rooms, arrows, sizes
	@$(PYTHON) scripts/structure.py

clean: ## remove environments and built artifacts
	rm -rf $(VENV) .venv37 artifacts build *.egg-info
