# Everything sets itself up: each target makes .venv with what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
comma := ,
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-triton check serve bench clean

demo: $(VENV)/.base
	@$(BIN)/glm demo

# Files side by side: a server, or a trained model, is shared by the tests of its file.
test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

test-triton: $(VENV)/.dev
	@$(PIP) triton
	TRITON_INTERPRET=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 tests/unit/test_triton.py
	$(BIN)/python -m pytest tests/unit/test_triton_compile.py

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

serve: $(VENV)/.web
	@$(BIN)/glm serve

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# Each at once, not one behind the other: pip builds the CPU kernels anew every time.
define install
	@echo "Installing openglm$(1) into $(VENV) (torch is a large download) ..."
	@$(PIP) -e '.$(1)'
	@touch $(VENV)/.base $@
endef

$(VENV)/.base: $(VENV)/bin/python pyproject.toml constraints.txt
	$(call install,)

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(call install,[dev])

$(VENV)/.web: $(VENV)/bin/python pyproject.toml constraints.txt
	$(call install,[web])

$(VENV)/.bench: $(VENV)/bin/python pyproject.toml constraints.txt
	$(call install,[bench$(comma)train])
