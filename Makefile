# Every target makes its own environment in .venv first; nothing else has to be installed but Python 3.11 or later.
VENV ?= .venv
BIN := $(VENV)/bin
CORES := $(shell getconf _NPROCESSORS_ONLN)

.PHONY: demo docs study tables web test test-fast test-serve test-versions test-web quality style

$(VENV)/.installed: setup.cfg constraints.txt
	python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[test,dev]"
	touch $@

# Train a gated-prompt adapter on real images, beside a linear probe: minutes on two cores.
demo: $(VENV)/.installed
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		--num_cpu_threads_per_process $(CORES) \
		examples/train_vtab.py --optimizer adamw --num_train_epochs 12 --warmup_epochs 0 \
		--per_device_train_batch_size 10 --num_virtual_tokens 10 --gate_init -3 --head_init probe --learning_rate 0.01 \
		--output_dir runs/demo $(DEMO_ARGS)

# What is missing of the race. STUDY="check-miniature" or STUDY="check-real" reruns a part of docs/appendix/miniature.md
# or docs/appendix/real_tables.md with a new seed, and fails where an accuracy lies outside what the committed ones allow.
STUDY ?= race
study: $(VENV)/.installed runs/dinov2-small-saliency/config.json
	OMP_NUM_THREADS=1 $(BIN)/python examples/study/run.py $(STUDY) \
		$(if $(GATED_PROMPT_TEST_DATA),--data_dir "$(GATED_PROMPT_TEST_DATA)") $(STUDY_ARGS)

runs/dinov2-small-saliency/config.json: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt onnx
	$(BIN)/python examples/backbones/fetch_dinov2_small.py --output_dir $(@D)

# Build the demo page into runs/web, serve it to this machine and open it, see docs/demo.md. The first time it fetches
# onnxruntime-web from the npm registry.
web: $(VENV)/.installed
	$(BIN)/python examples/demo/app.py $(WEB_ARGS)

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(CORES) $(TEST_ARGS)

# The tests that take at most ten seconds each.
test-fast: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(CORES) -m "not slow" $(TEST_ARGS)

# The tests of the demo page, in a real browser where Chromium is on the PATH and onnxruntime-web can be fetched; without
# them they skip and say so.
test-web: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[demo-test]"
	-PYTHONPATH=examples $(BIN)/python -m demo.onnxruntime_web
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/serving/test_demo_page.py -rs $(TEST_ARGS)

# The tests of the server, with a real Ray Serve on loopback; without the extra they skip and say so.
test-serve: $(VENV)/.installed-serve
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/serving --ignore tests/serving/test_demo_page.py -rs $(TEST_ARGS)

$(VENV)/.installed-serve: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[serve]"
	touch $@

# The tests with every supported pair of PEFT and transformers; writes docs/contributing/versions.md.
test-versions:
	.ci/test-versions

# The pages of docs/ as a site in docs/_build/html; every warning is an error. Needs no network once installed.
docs: $(VENV)/.installed-docs
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet --builder html docs docs/_build/html

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	touch $@

# Tables and pictures of README and docs/ that are made from what is committed; the tests compare.
tables: $(VENV)/.installed
	$(BIN)/python tools/miniature_page.py
	$(BIN)/python tools/race_page.py
	$(BIN)/python tools/real_page.py
	$(BIN)/python examples/serving_load/measure_server.py tables
	$(BIN)/python tools/family_table.py
	$(BIN)/python tools/sweep_families.py --page
	$(BIN)/python tools/readme_tables.py
	$(BIN)/python tools/manifests.py

quality: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell
	$(BIN)/python tools/prose.py

style: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
