#!/usr/bin/env bash
# Debian's slepc4py is compiled for numpy 1: puts one beside the virtual environment, for the tests of `--solver slepc`.
# Does nothing where slepc4py is not installed (apt install python3-slepc4py-complex mpi-default-bin); the tests are skipped then.
#   tools/setup_slepc.sh VENV
set -uo pipefail
venv=$1
[ -d "$venv/numpy1" ] && exit 0
compgen -G "/usr/lib/slepcdir/slepc*/*-complex/lib/python3/dist-packages" >/dev/null || exit 0
"$venv/bin/python" -m pip --disable-pip-version-check --quiet install --no-compile --no-deps --target "$venv/numpy1" "numpy<2" 2>"$venv/slepc.log" ||
  { rm -rf "$venv/numpy1"; echo "slepc: numpy 1 could not be installed (see $venv/slepc.log); its tests will be skipped" >&2; }
exit 0
