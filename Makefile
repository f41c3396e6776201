# make book · make pdf · make test · make check · make tables · make bench · make lab · make train · make clean
# Each makes .venv first if it is missing or older than pyproject.toml or constraints.txt.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.SILENT:
.DEFAULT_GOAL := help
.PHONY: help book pdf test check tables bench lab train clean

PYTHON ?= python3
BIN := .venv/bin
ENV := .venv/installed

# A reader on a slow machine should know that it works, and afterwards what it cost.
done = echo "$(1) ($$((SECONDS / 60)) min $$((SECONDS % 60)) s)"

help:
	echo "make book    run every page and build the site into book/_build/html"
	echo "make pdf     print the built site into book/_build/book.pdf, with Chromium"
	echo "make test    run the tests"
	echo "make check   run the slow checks: the built site in a browser, notebooks under papermill"
	echo "make tables  make all runs behind the tables and figures, then run their notebooks; resumes"
	echo "             make tables LIMIT=20 ARGS='table-1 figure-7' for a quick look at two"
	echo "make bench   measure how much faster pruning makes the bundled model; with CUDA, all of the paper's models"
	echo "make lab     open JupyterLab on the book"
	echo "make train   train the bundled model and examine it; resumes, and takes hours"
	echo "make clean   remove .venv and the built site"
	echo "make book PYTHON=python3.12    picks the interpreter (3.11 to 3.13)"

# No half-built site is mistaken for a good one, and no page keeps results of older code: every build starts from nothing.
# Pages read stored runs and make none: what is missing is shown as not run.
book: $(ENV)
	rm -rf book/_build
	DART_COMPUTE=0 $(BIN)/jupyter-book build book -W -n --keep-going
	$(call done,The site is in book/_build/html/index.html)

pdf: $(ENV)
	$(BIN)/python book/_ext/pdf.py
	$(call done,The PDF is book/_build/book.pdf)

test: $(ENV)
	$(BIN)/python -m pytest -n 2
	$(call done,All tests passed)

check: $(ENV)
	$(BIN)/python -m pytest tests/checks
	$(call done,All checks are through)

tables: $(ENV)
	$(BIN)/dart tables $(if $(LIMIT),--limit $(LIMIT)) $(ARGS)
	$(call done,Tables and figures are in build/tables)

bench: $(ENV)
	$(BIN)/dart bench --suite $(ARGS)
	$(call done,The records are in build/bench)

lab: $(ENV)
	$(BIN)/jupyter lab book $(if $(filter 0,$(shell id -u)),--allow-root)

train: $(ENV)
	$(BIN)/python train/bundled.py
	$(BIN)/python train/exam.py
	$(call done,The model is in data/model)

clean:
	rm -rf .venv book/_build

$(ENV): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || {
	    echo "$(PYTHON) is not Python 3.11, 3.12 or 3.13. Name one that is: make book PYTHON=python3.12" >&2
	    exit 1
	}
	$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || {
	    echo "$(PYTHON) cannot make virtual environments. On Debian: apt install python3-venv" >&2
	    exit 1
	}
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	echo "Installing into .venv; the first time takes minutes, most of them for torch."
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[book,test]' |
	    grep --line-buffered -E '^(Collecting|Building|Installing|Successfully)|Downloading .* MB'
	touch $@
	$(call done,The environment is in .venv)
