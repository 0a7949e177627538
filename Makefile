# `make demo` sets up and runs the main job on the bundled data, `make test` sets up and runs the tests.
# `make docs` builds the documentation's website. All make the virtual environment .venv; the system's Python stays as it is.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= runs/demo
# A file's tests stay together: they share what they compile.
PARALLEL ?= -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: demo test lint bench docs clean

demo: $(VENV)/.hamfast-demo
	@rm -rf $(RUN)
	$(BIN)/hamfast train examples/graphene/config.yaml --output $(RUN)
	$(BIN)/hamfast predict $(RUN)/model.ckpt examples/graphene/dft/3x3_022 --output $(RUN)/predicted
	$(BIN)/hamfast bands examples/graphene/dft/3x3_022 --kpath GKMG --prediction $(RUN)/predicted/3x3_022 \
		--output $(RUN)/bands --points 60 --mesh 2 2 1
	$(BIN)/hamfast evaluate $(RUN)/model.ckpt --label-noise examples/graphene/label_noise.json
	@echo "figure: $(RUN)/bands/bands.png"

test: $(VENV)/.hamfast-test
	tools/setup_peers.sh $(VENV)
	tools/setup_slepc.sh $(VENV)
	$(BIN)/python -m pytest $(PARALLEL)

lint: $(VENV)/.hamfast-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')
	$(BIN)/mypy

bench: $(VENV)/.hamfast-test
	tools/setup_peers.sh $(VENV)
	$(BIN)/python -m pytest bench --benchmark-only

docs: $(VENV)/.hamfast-docs
	$(BIN)/python -m sphinx -q -E -W --keep-going -b html docs build/docs
	@echo "website: build/docs/index.html"

# The demo needs no CUDA kernels where there is no GPU; the tests compile them wherever nvcc is.
SOURCES := setup.py CMakeLists.txt pyproject.toml $(shell find csrc kernels hamfast -name '*.cpp' -o -name '*.h' -o -name '*.cu*' -o -name '*.py')

$(VENV)/.hamfast-demo: tools/setup_venv.sh $(SOURCES)
	tools/setup_venv.sh $(PYTHON) $(VENV) demo

$(VENV)/.hamfast-test: tools/setup_venv.sh $(SOURCES)
	tools/setup_venv.sh $(PYTHON) $(VENV) test

$(VENV)/.hamfast-lint: tools/setup_venv.sh $(SOURCES)
	tools/setup_venv.sh $(PYTHON) $(VENV) lint

# The website is made from pages and docstrings: hamfast itself is not built for it.
$(VENV)/.hamfast-docs: tools/setup_venv.sh pyproject.toml
	tools/setup_venv.sh $(PYTHON) $(VENV) docs

clean:
	rm -rf build $(VENV) runs hamfast/lib hamfast/_native*.so
