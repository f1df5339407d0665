# Jackfield. `make` alone lists what can be made.
#
#   make serve ARGS="--model ~/models/Qwen2.5-Coder-32B-Instruct-4bit --port 9000"
#   make serve MLX=cpu                       the plain CPU build, whatever this machine has
#   make serve PYTHON=/path/to/python3.12    this Python rather than the first that fits

VENV := .venv
BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip --disable-pip-version-check -q

# --- Which MLX: metal, cuda13, cuda12, mkl (a CPU with a fast BLAS) or cpu ------------------------------------------

best_Darwin_arm64  := metal
best_Linux_x86_64  := mkl
best_Linux_aarch64 := cpu
best_Linux_arm64   := cpu

MACHINE := $(shell echo "$$(uname -s)_$$(uname -m)")
# CUDA 13 wants driver 580 or newer, CUDA 12 wants 550.
CUDA := $(shell nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | \
          awk 'NR == 1 && $$1+0 >= 550 { print ($$1+0 >= 580 ? "cuda13" : "cuda12") }')
MLX  ?= $(if $(best_$(MACHINE)),$(or $(CUDA),$(best_$(MACHINE))))

told_metal  := MLX for Apple silicon (0.6 GB on disk, once)
told_cuda13 := MLX for CUDA 13 (3.3 GB on disk, once)
told_cuda12 := MLX for CUDA 12 (3.3 GB on disk, once)
told_mkl    := MLX for the CPU and MKL, a fast BLAS (1.3 GB on disk, once)
told_cpu    := MLX for the CPU (0.4 GB on disk, once)
TOLD := $(told_$(MLX))

define check-mlx
	$(if $(MLX),,$(error MLX runs on Apple silicon and on x86-64 or aarch64 Linux, and this is $(shell uname -sm)))
	$(if $(TOLD),,$(error MLX=$(MLX) is none of metal, cuda13, cuda12, mkl, cpu))
endef

# --- Which Python: the path of the first that fits, or "!" and what is wrong with the first that was found -------------

define check-python
import sys, platform; \
sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, and this is " + sys.version.split()[0]); \
from importlib.util import find_spec; \
find_spec("ensurepip") and find_spec("venv") or sys.exit("it has no venv (Debian and Ubuntu: apt install python3-venv)"); \
libc = platform.libc_ver() if sys.platform == "linux" else ("glibc", "9.9"); \
libc[0] == "glibc" and tuple(map(int, libc[1].split("."))) >= (2, 35) \
or sys.exit("MLX needs glibc 2.35 or newer, and this is " + (" ".join(libc).strip() or "another libc"))
endef

define find-python
for python in $(if $(PYTHON),"$(PYTHON)",python3 python3.14 python3.13 python3.12 python3.11); do \
  command -v "$$python" >/dev/null 2>&1 || continue; \
  wrong=$$("$$python" -c '$(check-python)' 2>&1) && { echo "$$python"; exit; }; \
  told=$${told:-"$$python will not do: $$(echo "$$wrong" | head -n 1)"}; \
done; \
echo "!$${told:-Python 3.11 or newer is needed, and there is no $(or $(PYTHON),python3) here} (PYTHON=... names another)"
endef

# --- Installing: done again only when a pyproject.toml, or the choice of MLX, has changed ------------------------------

PROJECTS := $(wildcard pyproject.toml plugins/*/pyproject.toml)
PLUGINS  := $(patsubst %/pyproject.toml,%,$(filter plugins/%,$(PROJECTS)))
RUNTIME  := $(VENV)/.runtime-$(MLX)
TOOLS    := $(VENV)/.tools-$(MLX)

comma  := ,
space  := $(subst ,, )
extras  = $(if $(strip $(1)),[$(subst $(space),$(comma),$(strip $(1)))])

# $(call install,EXTRA ...): Jackfield and its plugins, editable, in one go so that they find each other.
define install
	$(check-mlx)
	@echo "Installing Jackfield with $(TOLD) ..."
	@$(PIP) install -e '.$(call extras,$(1) $(filter mkl,$(MLX)))' \
	  $(foreach plugin,$(PLUGINS),-e './$(plugin)$(call extras,$(filter test,$(1)))')
	$(if $(filter cuda%,$(MLX)),$(use-cuda))
	@rm -f $(VENV)/.runtime-* $(VENV)/.tools-*
	@touch $(RUNTIME)
endef

# mlx-cpu, which the package asks for on Linux, and mlx-cuda-NN own the same libmlx.so: take out whatever put one there,
# then install the one that is meant, whole.
define use-cuda
	@$(PIP) -qq uninstall -y mlx-cpu mlx-cuda-12 mlx-cuda-13
	@$(PIP) install "mlx-$(MLX:cuda%=cuda-%)==$$($(BIN)/python -c 'from importlib.metadata import version as v; print(v("mlx"))')"
endef

$(BIN)/python:
	$(check-mlx)
	$(eval python := $(shell $(find-python)))
	$(if $(filter !%,$(python)),$(error $(python:!%=%)))
	@echo "Making $(VENV) with $(python) ..."
	@"$(python)" -m venv --clear $(VENV)

$(RUNTIME): $(PROJECTS) | $(BIN)/python
	$(call install)

$(TOOLS): $(PROJECTS) | $(BIN)/python
	$(call install,test lint)
	@touch $@

# --- The clients of `make test-clients`: done again only when a version of one of them has changed -------------------

CLIENTS        := .build/clients
NODE_CLIENTS   := $(CLIENTS)/node/.installed
PYTHON_CLIENTS := $(CLIENTS)/venv/.installed

$(PYTHON_CLIENTS): tests/clients/requirements.txt | $(BIN)/python
	@echo "Installing clients from PyPI (0.5 GB on disk, once) ..."
	@$(BIN)/python -m venv --clear $(@D)
	@$(@D)/bin/python -m pip --disable-pip-version-check -q install -r $<
	@touch $@

# Not `npm ci`: it wants the lock file to have opencode for every machine there is, and not every registry has those.
$(NODE_CLIENTS): tests/clients/package.json tests/clients/package-lock.json
	$(if $(shell command -v npm),,$(error npm is needed, and is not here (Debian and Ubuntu: apt install npm)))
	@echo "Installing clients from npm, with the Node that they want (1.6 GB on disk, once) ..."
	@mkdir -p $(@D)
	@cp $^ $(@D)
	@cd $(@D) && npm install --no-audit --no-fund --loglevel=error
	@touch $@

# --- The servers of `make test-peers`: done again only when a version of one of them has changed ---------------------

PEERS   := .build/peers
SERVERS := $(PEERS)/.installed

# What reads pictures and sound goes out again: it wants a PyTorch of its own, and vLLM does without.
$(SERVERS): tests/peers/requirements.txt | $(BIN)/python
	@echo "Installing llama.cpp, vLLM, Ray Serve and PEFT from PyPI (4 GB on disk, once) ..."
	@$(BIN)/python -m venv --clear $(@D)
	@$(@D)/bin/python -m pip --disable-pip-version-check -q install -r $<
	@$(@D)/bin/python -m pip --disable-pip-version-check -qq uninstall -y torchvision torchaudio torchcodec
	@touch $@

# --- The programs of `make test-system`, from Debian -------------------------------------------------------------------

SYSTEM    := .build/system
PROGRAMS  := $(SYSTEM)/.installed
INSTALLED := chromium strace systemd
as-root   := $$(test "$$(id -u)" = 0 || echo sudo)

# Prometheus is only unpacked: installing it would start a server of its own.
$(PROGRAMS): Makefile
	$(if $(shell command -v apt-get),,$(error apt-get is needed: these tests run on Debian and Ubuntu))
	@echo "Installing $(INSTALLED) and unpacking prometheus, from Debian (0.5 GB on disk, once) ..."
	@mkdir -p $(@D)
	@$(as-root) apt-get -qq update
	@$(as-root) env DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends $(INSTALLED) >$(@D)/apt.log 2>&1 \
	  || { cat $(@D)/apt.log; exit 1; }
	@cd $(@D) && apt-get -qq download prometheus 2>>apt.log && dpkg -x prometheus_*.deb .
	@touch $@

# And what drives them, from PyPI.
DRIVEN_BY := $(wildcard plugins/*/tests/system/requirements.txt)
DRIVERS   := $(VENV)/.drivers

$(DRIVERS): $(DRIVEN_BY) | $(TOOLS)
	@echo "Installing Playwright, which drives Chromium, from PyPI (0.2 GB on disk, once) ..."
	@$(PIP) install $(addprefix -r ,$^)
	@touch $@

# --- What can be made -----------------------------------------------------------------------------------------------

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help serve test test-plugins test-clients test-seed test-system test-load test-compliance test-peers test-group test-faults soak lint bench bench-engine bench-sockets clean

help:  ## list what can be made
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' Makefile

serve: $(RUNTIME)  ## install Jackfield here, then start it (ARGS="..." goes to `jackfield serve`)
	@exec $(BIN)/jackfield serve $(ARGS)

# Two files at a time; the few that ARGS picks out are done sooner without workers, which have to start first.
WORKERS ?= $(if $(ARGS),0,2)
workers  = $(if $(filter-out 0 1,$(WORKERS)),-n $(WORKERS) --dist loadfile --no-loadscope-reorder)

# $(call measured,FOLDER,PYTEST-ARGUMENTS): the tests, and how much of FOLDER they cover.
define measured
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest $(workers) $(2) $(ARGS)
	@$(BIN)/coverage combine -q
	@$(BIN)/coverage report --include='$(1)/*' $(if $(ARGS),--fail-under=0)
endef

test: $(TOOLS)  ## run the tests and report their coverage (ARGS="..." goes to pytest, and lifts the coverage limit)
	$(call measured,server)

test-plugins: $(TOOLS)  ## the same for the official plugins, each with its own tests
	$(call measured,plugins,plugins)

test-clients: $(TOOLS) $(PYTHON_CLIENTS) $(NODE_CLIENTS)  ## run real assistants and SDKs against servers here, as docs/clients.md sets them up
	@CLIENTS_DIR="$(CURDIR)/$(CLIENTS)" $(BIN)/python -m pytest tests/clients $(ARGS)

test-seed: $(TOOLS)  ## the preset for Qwen2.5-Coder-32B, with a stand-in for its weights and all of its context of 32k
	@SEED_PROMPT_TOKENS=32768 $(BIN)/python -m pytest tests/test_seed_configuration.py $(ARGS)

test-system: $(TOOLS) $(PROGRAMS) $(DRIVERS)  ## run it beside Prometheus, Chromium and systemd, which are installed from Debian
	@SYSTEM_TESTS=1 PATH="$(CURDIR)/$(SYSTEM)/usr/bin:$$PATH" $(BIN)/python -m pytest tests/system \
	  $(wildcard plugins/*/tests/system) $(ARGS)

test-load: $(TOOLS)  ## whether each of many clients at once gets what it gets alone, cached or not, from the real starter
	@LOAD_TESTS=1 $(BIN)/python -m pytest tests/load $(ARGS)

test-compliance: $(TOOLS)  ## outside suites against it: schemathesis with openapi.yaml, llm-comply with three dialects
	@COMPLIANCE_TESTS=1 $(BIN)/python -m pytest tests/compliance $(ARGS)

test-peers: $(TOOLS) $(SERVERS)  ## real llama.cpp, vLLM, Ray Serve and mlx_lm.server as upstreams, and adapters that PEFT made
	@PEER_TESTS=1 PEERS_DIR="$(CURDIR)/$(PEERS)" $(BIN)/python -m pytest tests/peers $(ARGS)

test-group: $(TOOLS)  ## one model in two and in three processes, which die, hang and are cut off from each other
	@GROUP_TESTS=1 $(BIN)/python -m pytest tests/group $(ARGS)

FAULT_SECONDS ?= 300

test-faults: $(TOOLS)  ## kill, starve, flood and mistreat it, then five minutes of mixed load (FAULT_SECONDS=60)
	@FAULT_SECONDS=$(FAULT_SECONDS) $(BIN)/python -m pytest tests/faults $(ARGS)

SOAK_SECONDS ?= 600

soak: $(TOOLS)  ## ten minutes of load under tight limits, then a while without memory (SOAK_SECONDS=180, SOAK_JSON=soak.json)
	@SOAK_SECONDS=$(SOAK_SECONDS) $(BIN)/python -m pytest -s tests/soak $(ARGS)

lint: $(TOOLS)  ## check style, formatting and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(RUNTIME)  ## measure Jackfield beside mlx_lm.server (ARGS="--quick" for a first look)
	@exec $(BIN)/python benchmarks/compare.py $(ARGS)

bench-engine: $(RUNTIME)  ## measure the engine on its own: disk, memory, kv_bits, fairness, grammar (ARGS="--parts disk")
	@exec $(BIN)/python benchmarks/engine.py $(ARGS)

bench-sockets: $(RUNTIME)  ## measure what a server pays for being ready for plugins, and for having them
	@exec $(BIN)/python benchmarks/sockets.py $(ARGS)

clean:  ## remove .venv and everything else that was made here
	@rm -rf $(VENV) .build dist htmlcov .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis .schemathesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
