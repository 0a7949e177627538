#!/usr/bin/env bash
# Installs the packages that hamfast is compared with into VENV/peers, away from hamfast's own dependencies (mace-torch asks for
# an old e3nn, and works with the new one). Optional: what cannot be had is skipped by the tests and benchmarks that want it.
#   tools/setup_peers.sh VENV
set -uo pipefail
venv=$1
target=$venv/peers
[ -e "$target/.complete" ] && exit 0
if "$venv/bin/python" -m pip --disable-pip-version-check --quiet install --no-compile --no-deps --target "$target" --upgrade \
  mace-torch==0.3.16 nequip==0.19.1 cuequivariance==0.13.0 cuequivariance-torch==0.13.0 sphericart-torch==2.0.4 sphericart==2.0.4 \
  matscipy python-hostlist configargparse torch-ema torchmetrics prettytable lightning-utilities pandas python-dateutil pytz tzdata six \
  hydra-core omegaconf==2.3.0 antlr4-python3-runtime==4.9.3 lmdb orjson torch-runstats monty gitpython gitdb smmap \
  opt_einsum_fx nequip-allegro==0.8.3 sevenn==0.13.0 e3tools==0.1.3 braceexpand==0.1.7 einops==0.8.2 jaxtyping==0.3.11 \
  wadler-lindig==0.1.8 requests==2.34.2 2>"$venv/peers.log"; then
  # There are builds of DGL for some versions of Python only.
  "$venv/bin/python" -m pip --disable-pip-version-check --quiet install --no-compile --no-deps --target "$target" dgl==2.1.0 2>>"$venv/peers.log"
  # Its pure Python comes as sources, which take seconds; its compiler of 340 MB, warp-lang, is left out.
  "$venv/bin/python" -m pip --disable-pip-version-check --quiet install --no-compile --no-deps --target "$target" torchmd-net==3.1.0 \
    2>>"$venv/peers.log"
  # MACE's own tests, which its wheel has not.
  "$venv/bin/python" -m pip --disable-pip-version-check --quiet download --no-deps --no-binary :all: --no-build-isolation \
    -d "$target/sources" mace-torch==0.3.16 2>>"$venv/peers.log"
  # The oldest version of Triton that hamfast takes: the kernels are compiled with it, too.
  "$venv/bin/python" -m pip --disable-pip-version-check --quiet install --no-compile --no-deps --target "$venv/oldest_triton" triton==3.6.0 \
    2>>"$venv/peers.log"
  touch "$target/.complete"
else
  echo "peers: could not be installed (see $venv/peers.log); the comparisons with them will be skipped" >&2
fi
