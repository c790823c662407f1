# `make demo` serves the page, `make test` runs every test, `make check` looks at the code without running it (seconds).

PYTHON ?= python

.PHONY: demo test check examples readme

demo:
	$(PYTHON) app.py

test:
	$(PYTHON) -m pytest -n logical

check:
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

examples:  # draw the example pictures again
	$(PYTHON) examples/draw.py

readme:  # write the README's tables again from the code that they describe
	$(PYTHON) tests/readme.py
