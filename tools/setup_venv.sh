#!/usr/bin/env bash
# Makes a virtual environment and installs hamfast into it from this source folder.
#   tools/setup_venv.sh PYTHON VENV demo|test|lint|docs
# For docs it installs what builds the website, and not hamfast.
# If PYTHON already has a torch that is new enough, the environment uses it; else torch is installed: its CPU build where there
# is no NVIDIA GPU. PYTHON itself is not changed.
set -euo pipefail
python=$1 venv=$2 purpose=$3
torch_version=2.13.0
cd "$(dirname "$0")/.."

has_torch() {
  "$1" -c 'import sys, torch; sys.exit(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11))' 2>/dev/null
}
has_gpu() { nvidia-smi -L >/dev/null 2>&1; }

if [ ! -x "$venv/bin/python" ]; then
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { echo "hamfast needs Python 3.11 or newer; set PYTHON=..." >&2; exit 1; }
  if has_torch "$python"; then
    "$python" -m venv --system-site-packages "$venv"
  else
    "$python" -m venv "$venv"
  fi
fi
# --no-compile: Python compiles what is imported when it is first imported; compiling all of torch here takes longer than that.
pip_install() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet install --no-compile "$@"; }

if [ "$purpose" = docs ]; then
  "$venv/bin/python" -c 'import tomllib; print("\n".join(
    tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"]))' >"$venv/docs.txt"
  pip_install -r "$venv/docs.txt"
  touch "$venv/.hamfast-docs"
  exit
fi

if ! has_torch "$venv/bin/python"; then
  if has_gpu; then
    pip_install "torch==$torch_version"
  else
    # The CPU build, from wherever pip is set up to find it, else from PyTorch's own index.
    pip_install "torch==$torch_version+cpu" 2>/dev/null ||
      pip_install "torch==$torch_version" --index-url https://download.pytorch.org/whl/cpu
  fi
fi

extra=
case $purpose in
  test) extra='[test]' ;;
  lint) extra='[test,lint]' ;;
  # Without a GPU the CUDA kernels would be compiled for nothing.
  demo) has_gpu || export HAMFAST_CUDA=${HAMFAST_CUDA:-0} ;;
esac
pip_install 'setuptools>=70.1' wheel 'pybind11>=2.13' ninja cmake
# Editable, so that tests and examples run against this folder; torch is pinned to what is there.
installed=$("$venv/bin/python" -c 'import torch; print(torch.__version__)' 2>/dev/null)
echo "torch==$installed" >"$venv/constraints.txt"
PATH="$(cd "$venv/bin" && pwd):$PATH" pip_install --no-build-isolation -c "$venv/constraints.txt" -e ".$extra"
touch "$venv/.hamfast-$purpose"
[ "$purpose" != lint ] || touch "$venv/.hamfast-test"  # the linters' environment has all that the tests want
"$venv/bin/hamfast" doctor
