# `make demo` and `make test` need nothing but Python: each makes a virtual environment and installs the project first.
PYTHON ?= python3
VENV ?= .venv
BIN = $(abspath $(VENV))/bin

# One stamp for each state of the files that say what to install: while they stay as they are, pip does not run.
SETUP = settings.ini setup.py pyproject.toml
STAMP = $(VENV)/installed-$(shell cat $(SETUP) | cksum | cut -d ' ' -f 1)

.PHONY: help install demo test test-page chromium prepare lab docs clean
help:
	@echo "make demo       train and evaluate on moving shapes, print the table (8 minutes on 2 quiet cores)"
	@echo "make test       run every check of the project (20 minutes on 2 quiet cores)"
	@echo "make test-page  run the tests of the page in Chromium, and install that where it is missing"
	@echo "make install    install the project with its developer tools into $(VENV)"
	@echo "make prepare    after an edit: format, clean the notebooks, export the modules, write README.md"
	@echo "make lab        open the notebooks in JupyterLab"
	@echo "make docs       make a site of the notebooks in _docs/html, and check its links"
	@echo "make clean      remove builds and caches, leave $(VENV) and runs/"

install: $(STAMP)
$(STAMP):
	@echo "Installing into $(VENV); PyTorch is large, this takes some minutes."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[dev]'
	@rm -f $(VENV)/installed-* && touch $@

demo: install
	@$(BIN)/promptswitch demo

test: install
	@$(BIN)/python scripts/test.py

test-page: install chromium
	@$(BIN)/python -m pytest -q -p no:cacheprovider tests/test_page.py

CHROMIUM = $(firstword $(foreach name,chromium chromium-browser google-chrome,$(shell command -v $(name))))
chromium:
ifeq ($(CHROMIUM),)
	@if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	  echo "Installing Chromium, a browser, for the tests of the page."; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium >/dev/null; \
	else echo "The tests of the page need Chromium: install it (such as: sudo apt install chromium)."; exit 1; fi
endif

prepare: install
	@$(BIN)/ruff check --quiet --fix . && $(BIN)/ruff format --quiet .
	@$(BIN)/nbdev_clean && $(BIN)/nbdev_export && $(BIN)/python scripts/pictures.py && $(BIN)/python scripts/readme.py

lab: install
	@$(BIN)/jupyter lab nbs

# The site needs neither PyTorch nor the package: the notebooks are shown as they are committed.
DOCS_STAMP = $(subst installed,docs,$(STAMP))
$(DOCS_STAMP):
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check $$(sed -n 's/^docs_requirements = //p' settings.ini)
	@rm -f $(VENV)/docs-* && touch $@

docs: $(DOCS_STAMP)
	@rm -rf _docs
	@$(BIN)/sphinx-build -q -W --keep-going -c docs -d _docs/doctrees nbs _docs/html
	@$(BIN)/python scripts/check_links.py _docs/html
	@echo "Open _docs/html/index.html"

clean:
	@rm -rf build dist *.egg-info _docs _proc .pytest_cache .ruff_cache
	@find nbs promptswitch_nb scripts tests -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
