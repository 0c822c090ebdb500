# make demo            set everything up, score a small archive and judge its drift
# make demo ARCHIVE=~/Pictures
# make test            set everything up and pass the tests, two files of them at a time
# make quick           the tests of at most 90 seconds
# make soak, make bench, make coverage
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: install demo lint test quick soak bench coverage chromium peers clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	$(BIN)/agewatch demo $(ARCHIVE)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: install chromium peers
	$(BIN)/python -m pytest -n 2 --dist loadfile

quick: install
	$(BIN)/python -m pytest -m quick

# Branches that the tests take, a line a wing; workers and commands that tests start count too. Twice as slow.
coverage: install chromium peers
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage combine --quiet
	@for wing in agewatch/estimator agewatch/scoring agewatch/labelled agewatch/training agewatch/release \
	  agewatch/serving agewatch/exports agewatch/gallery agewatch/cli flows handler monitoring; do \
	  printf '%-20s %s %%\n' $$wing "$$($(BIN)/coverage report --include="$$wing/*" --format=total)"; done

# The report's test opens it in Debian's Chromium.
chromium:
	@command -v chromium >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -qq && apt-get install -y -qq chromium; \
	  else echo "The tests need Chromium: sudo apt-get install chromium"; exit 1; fi; }

# What judges exports in their tests: ExifTool, and MegaDetector's validator without what it wants beside, as that is a
# second OpenCV.
peers: install
	@command -v exiftool >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -qq && apt-get install -y -qq libimage-exiftool-perl; \
	  else echo "The tests need ExifTool: sudo apt-get install libimage-exiftool-perl"; exit 1; fi; }
	@test -d $(VENV)/peers || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  --target $(VENV)/peers megadetector-utils==10.0.28 jsonpickle==4.1.4

# The long versions of the tests of damage, of kills and of damaged bytes: some half an hour; the first prints a table of
# formats by kinds of damage. Then 90 nights in which everything that can die does: more than an hour, and root.
# AGEWATCH_SOAK_COPIES names another number of copies; AGEWATCH_FUZZ_SECONDS=36000 goes on for a night.
soak: install
	AGEWATCH_SOAK=1 $(BIN)/python -m pytest -s tests/scoring/test_damage.py tests/scoring/test_kills.py tests/estimator/test_fuzz.py
	$(BIN)/python benchmarks/nights.py

# What scoring costs and finds and what drift is worth, written to benchmarks/RESULTS.md: some hours. AGEWATCH_DATA
# names real pictures.
bench: install
	for name in bench decode_memory archive_size object_storage drift segments drift_size idle $(if $(AGEWATCH_DATA),parity small_faces cause fit labels); do $(BIN)/python benchmarks/$$name.py || exit 1; done

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage* *.egg-info dist
