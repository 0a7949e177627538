#!/usr/bin/env bash
# The tests of the Triton kernels with each supported version of Triton, in virtual environments of their own.
#   tools/check_triton.sh FOLDER [VERSION...]
# hamfast must be built in this folder (pip install -e .). Triton 3.6's interpreter needs numpy before 2.4.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$1
shift
versions=("${@:-}")
[ -n "${versions[0]}" ] || versions=(3.6.0 3.7.1 3.8.0 3.9.0)
torch_version=$(python -c 'import torch; print(torch.__version__)')
for version in "${versions[@]}"; do
  venv=$folder/triton-$version
  [ -x "$venv/bin/python" ] || python -m venv "$venv"
  "$venv/bin/python" -m pip --disable-pip-version-check --quiet install "torch==$torch_version" "triton==$version" 'numpy<2.4' e3nn \
    pytest hypothesis h5py ase
  echo "== Triton $version"
  PYTHONPATH=. "$venv/bin/python" -m pytest -q tests/ops/test_backends.py tests/ops/test_backend_choice.py tests/kernels/test_triton.py
done
