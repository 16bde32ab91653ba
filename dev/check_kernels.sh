#!/bin/sh
# Builds the CPU kernels with AddressSanitizer and UndefinedBehaviorSanitizer, and with AVX-512 emulated where the processor lacks it,
# and runs their tests on that build. Needs g++, cmake, ninja and an environment with openglm[dev] and nanobind.
#
#     dev/check_kernels.sh [PYTHON]
set -eu
cd "$(dirname "$0")/.."
python=${1:-.venv/bin/python}
build=build/check
grep -q avx512_bf16 /proc/cpuinfo && emulate=OFF || emulate=ON
cmake -S . -B $build -G Ninja -DPython_EXECUTABLE="$($python -c 'import sys; print(sys.executable)')" \
    -DOPENGLM_SANITIZE=ON -DOPENGLM_EMULATE=$emulate >/dev/null
cmake --build $build
# Python itself leaks on purpose; what the kernels allocate lives as long as the process.
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
export LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so)"
exec $python - $build <<'EOF'
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

name = "openglm.kernels.cpu._native"
(file,) = Path(sys.argv[1]).glob("_native*.so")
spec = spec_from_file_location(name, file)
sys.modules[name] = module_from_spec(spec)  # in place of the installed one
spec.loader.exec_module(sys.modules[name])
print(file, sys.modules[name].variants())
tests = ["property/test_cpu_kernels.py", "property/test_sampling_kernels.py", "unit/test_paged_attention.py", "unit/test_compiled.py"]
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *(f"tests/{name}" for name in tests)]))
EOF
