# make reproduce   the whole pipeline at the scale that fits this machine (config/config.yaml)
# make test        tests, with one end-to-end run of the real Snakefile
# make test-all    the tests that take longer, too, and as root test-slurm's
# make test-slurm  a SLURM cluster of two nodes on this machine (Debian, as root), and the pipeline through it
# make test-gpu    what one NVIDIA GPU shows, on a machine that has one
# make lint        ruff, snakefmt, snakemake --lint
# make docs       the pages of docs/ as a site in site/, every link checked; the page of all keys anew
# make lock        requirements.lock anew from pyproject.toml
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
ACTIVATE := . $(VENV)/bin/activate
# A process per core that this container has; the tests of a file share what is made for them.
SIDE_BY_SIDE := -n "$$(python -c 'from krakenlm.machine import cores; print(cores())')" --dist loadfile

.PHONY: reproduce test test-all test-slurm test-gpu lint docs lock install

reproduce: install
	$(ACTIVATE) && snakemake

test: install
	$(ACTIVATE) && python -m pytest $(SIDE_BY_SIDE)

test-all: install
	$(ACTIVATE) && python -m pytest $(SIDE_BY_SIDE) -m "slow or not slow"

test-slurm: install
	@test "$$(id -u)" = 0 || { echo "make: expected root, which installs and starts SLURM, found $$(id -un)" >&2; exit 2; }
	$(ACTIVATE) && python -m pytest -m slurm -s tests/slurm

test-gpu: install
	@$(ACTIVATE) && python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || \
	  { echo "make: expected an NVIDIA GPU, found none" >&2; exit 2; }
	$(ACTIVATE) && python -m pytest -m gpu tests/gpu

lint: install
	$(ACTIVATE) && ruff check . && ruff format --check . && snakefmt --check Snakefile workflow && snakemake --lint

docs: install
	$(ACTIVATE) && python workflow/schemas/reference.py && mkdocs build --strict --quiet --site-dir site

install: $(VENV)/.installed

# The stamp is the last thing written: an installation that was cut off is taken up again.
$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: expected Python 3.11 or later, found $$($(PYTHON) --version 2>&1); name another with PYTHON=python3.11" >&2; exit 2; }
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "make: expected Python's venv module, found none; on Debian: apt-get install python3-venv" >&2; exit 2; }
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

lock:
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet "torch==2.13.0" ".[dev]"
	@# No local version (+cpu): the same line installs the CUDA build where pip finds that one.
	.venv-lock/bin/pip freeze --exclude krakenlm --exclude setuptools | sed -E 's/^(torch==[0-9.]+)\+.*/\1/' > requirements.lock.part
	mv requirements.lock.part requirements.lock && rm -rf .venv-lock
