# Every target sets up what it needs and asks no question: a virtual environment in .venv, an
# editable install with the extras of that target, and, on Debian as root, a software Vulkan adapter.
# Stamp files in .venv make a second call quick; `make clean` removes everything that was set up.

VENV  := .venv
BIN   := $(VENV)/bin
DEMO  ?= icosphere
ARGS  ?=
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
# A fresh machine may lack a C locale with UTF-8, and progress lines are not ASCII.
export PYTHONUTF8 := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.PHONY: help demo test test-long check docs format bench bench-peers gpu-wins adapter typing clean

help:
	@echo "make demo        run a demo and write its picture (DEMO=$(DEMO))"
	@echo "make test        run the tests (ARGS='-k name' narrows)"
	@echo "make test-long   run the tests with the heavy property tests"
	@echo "make check       ruff, formatting, pyright"
	@echo "make docs        build the site into site/, warnings as errors"
	@echo "make format      rewrite the code as ruff wants it"
	@echo "make bench       measure kernels and solves on the best adapter (benchmarks/)"
	@echo "make gpu-wins    measure CPU against GPU by size, and rewrite docs/when-the-gpu-wins.md"
	@echo "make bench-peers Ceres Solver beside us on this CPU (needs g++ and libceres-dev)"
	@echo "make clean       remove .venv and everything generated"

demo: $(VENV)/.stamp-demos $(VENV)/.stamp-fast adapter
	@$(BIN)/python -m autograd_gpu demo $(DEMO) $(ARGS)

test: $(VENV)/.stamp-test $(VENV)/.stamp-fast adapter
	@$(BIN)/python -m pytest -m "not long" $(ARGS)

# AUTOGRAD_GPU_LONG is for what a marker cannot say, such as Hypothesis' number of examples.
test-long: $(VENV)/.stamp-test $(VENV)/.stamp-fast adapter
	@AUTOGRAD_GPU_LONG=1 $(BIN)/python -m pytest $(ARGS)

# The reference is read from source, so this venv needs neither the package nor a GPU.
docs: $(VENV)/.stamp-docs typing
	@NO_MKDOCS_2_WARNING=1 $(VENV)/docs/bin/mkdocs build --quiet
	@echo "docs: wrote site/index.html"

check: $(VENV)/.stamp-dev typing
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright --project .typing

format: $(VENV)/.stamp-dev
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

bench: $(VENV)/.stamp-demos $(VENV)/.stamp-fast adapter
	@$(BIN)/python -m benchmarks.device_solve $(ARGS)

bench-peers: $(VENV)/.stamp-test $(VENV)/.stamp-fast
	@$(BIN)/python -m benchmarks.peers_ceres $(ARGS)

gpu-wins: $(VENV)/.stamp-demos $(VENV)/.stamp-fast
	@$(BIN)/python -m benchmarks.gpu_wins $(ARGS)

adapter:
	@.ci/ensure_adapter.sh

# Type checkers cannot read setuptools' package-dir, so they get a tree of links that has the shape
# of the installed package.
typing:
	@rm -rf .typing && mkdir -p .typing/autograd_gpu
	@for entry in autograd_gpu/*; do \
	  case $$entry in */__pycache__) ;; *) ln -s ../../$$entry .typing/$$entry ;; esac; \
	done
	@for folder in codegen templates solvers meshes demos; do \
	  ln -s ../../$$folder .typing/autograd_gpu/$$folder; \
	done
	@ln -s ../pyproject.toml .typing/pyproject.toml
	@ln -s ../$(VENV) .typing/$(VENV)

$(VENV)/.stamp-venv: .ci/ensure_venv.sh
	@.ci/ensure_venv.sh $(VENV) $(PYTHON)
	@touch $@

$(VENV)/.stamp-demos: EXTRAS = demos
$(VENV)/.stamp-test: EXTRAS = demos,test
$(VENV)/.stamp-dev: EXTRAS = demos,test,dev
$(VENV)/.stamp-demos $(VENV)/.stamp-test $(VENV)/.stamp-dev: pyproject.toml $(VENV)/.stamp-venv
	@echo "setup: installing autograd-gpu[$(EXTRAS)] into $(VENV)"
	@$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	@touch $@

$(VENV)/.stamp-docs: pyproject.toml $(VENV)/.stamp-venv
	@echo "setup: installing what the extra [docs] names into $(VENV)/docs"
	@$(BIN)/python -m venv $(VENV)/docs
	@$(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'], sep='\n')" \
	  | $(VENV)/docs/bin/python -m pip install --quiet -r /dev/stdin
	@touch $@

# Intel's sparse Cholesky is an option: a machine without its wheel does without.
$(VENV)/.stamp-fast: pyproject.toml $(VENV)/.stamp-venv
	@$(BIN)/python -m pip install --quiet --only-binary :all: --editable '.[fast]' \
	  >$(VENV)/fast.log 2>&1 \
	  || echo "setup: the extra [fast] has no wheel here (see $(VENV)/fast.log); going on without it"
	@touch $@

clean:
	rm -rf $(VENV) .typing build dist out site *.egg-info .pytest_cache .ruff_cache .hypothesis
