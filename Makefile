# Two commands on a machine that has Python 3.11 (or 3.12), make and pip:
#   make demo    export a network that comes along, trained, to four runtimes, verify it, classify a photo with each
#   make test    the tests
# Both make the environment .venv where it is missing. For android_demo/README.md:
#   make android-assets    export the models that the app shows

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || echo python3)
BIN := .venv/bin
READY := .venv/.ready
DEMO := build/demo
TARGETS := coreml executorch tflite onnx
ANDROID_ASSETS := android_demo/app/src/main/assets
ANDROID_TARGETS := tflite,executorch,onnx
ANDROID_MODELS ?= mobile-former-52m micronet-m2
ANDROID_INT8_MODELS ?= micronet-m2
ANDROID_WEIGHTS ?= cifar10

.PHONY: demo android-assets test lint format check benchmark zoo-table clean

demo: $(READY)
	$(BIN)/edgekit export -m mobile-former-52m --weights cifar10 -t all -o $(DEMO) --force
	@for target in $(TARGETS); do \
		echo "$(BIN)/edgekit predict $(DEMO)/mobile-former-52m-$$target-fp32 tests/photos/cat.jpg --top 3"; \
		$(BIN)/edgekit predict $(DEMO)/mobile-former-52m-$$target-fp32 tests/photos/cat.jpg --top 3 || exit 1; \
	done

define ANDROID_EXPORT
$(BIN)/edgekit export -m $(1) $(if $(ANDROID_WEIGHTS),--weights $(ANDROID_WEIGHTS)) -t $(ANDROID_TARGETS) $(2) -o $(ANDROID_ASSETS) --force

endef
android-assets: $(READY)
	$(foreach model,$(ANDROID_MODELS),$(call ANDROID_EXPORT,$(model),-p fp32))
	$(foreach model,$(ANDROID_INT8_MODELS),$(call ANDROID_EXPORT,$(model),-p int8 --calibration synthetic))

test: $(READY)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadscope --no-loadscope-reorder

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
	$(BIN)/python benchmarks/distillation.py
	$(BIN)/python benchmarks/devices.py
	$(BIN)/python benchmarks/sweep_resume.py $(PHOTOS)
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
