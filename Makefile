# Two commands on a machine that has Python 3.11 (or 3.12), make and pip:
#   make demo    export lvt to four runtimes, verify it, classify a photo with each
#   make test    the tests
# Both make the environment .venv where it is missing.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || echo python3)
BIN := .venv/bin
READY := .venv/.ready
DEMO := build/demo
TARGETS := coreml executorch tflite onnx

.PHONY: demo test lint format check benchmark zoo-table clean

demo: $(READY)
	$(BIN)/edgekit export -m lvt -t all -o $(DEMO) --force
	@for target in $(TARGETS); do \
		photo=$$($(BIN)/python -c 'import sklearn, pathlib; print(pathlib.Path(sklearn.__file__).parent / "datasets/images/flower.jpg")'); \
		echo "$(BIN)/edgekit predict $(DEMO)/lvt-$$target-fp32 flower.jpg --top 3"; \
		$(BIN)/edgekit predict $(DEMO)/lvt-$$target-fp32 "$$photo" --top 3 || exit 1; \
	done

test: $(READY)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: lint test

benchmark: $(READY)
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/naive_vs_edgekit.py
	$(BIN)/python benchmarks/export_overhead.py
	$(BIN)/python benchmarks/accuracy.py
	$(BIN)/python benchmarks/int8_accuracy.py
	$(BIN)/python benchmarks/int8_zoo.py
	$(BIN)/python benchmarks/tables.py

# Exports and verifies the whole zoo: about half an hour on two cores. RESUME=1 keeps the rows that are saved.
zoo-table: $(READY)
	$(BIN)/python benchmarks/zoo.py $(if $(RESUME),--resume)
	$(BIN)/python benchmarks/tables.py

# torch goes first and by itself: beside other packages, pip may choose a newer build with gigabytes of CUDA.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf build artifacts .venv
