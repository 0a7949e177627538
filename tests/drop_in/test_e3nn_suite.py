"""e3nn's own tests of its tensor products pass with hamfast at work in them."""

import os
import shutil
import subprocess
import sys

import e3nn
import pytest

FILES = ["tests/o3/tensor_product_test.py", "tests/o3/tensor_product_sub_test.py"]
# All of them but statistics over a million random products, which take as long as all else here,
# with e3nn's own code as well; tests/plan/test_plan.py compares the normalisations themselves.
STATISTICS = ("test_normalized", "test_square_normalization")

PLUGIN = """
import hamfast
from hamfast.nn import drop_in

calls = 0
run = drop_in.broadcast_tensor_product

def counted(*args):
    global calls
    calls += 1
    return run(*args)

drop_in.broadcast_tensor_product = counted
hamfast.set_e3nn_backend()

def pytest_sessionfinish(session):
    print(f"hamfast ran {calls} products")
"""


@pytest.mark.slow
def test_e3nn_tests_pass_on_the_backend(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    source_only = ["--no-build-isolation", "--no-binary", "e3nn", f"e3nn=={e3nn.__version__}", "--dest", tmp_path]
    fetched = subprocess.run([*pip, *source_only], capture_output=True, text=True)
    archives = list(tmp_path.glob("e3nn-*.tar.gz"))
    if not archives:
        pytest.skip(f"e3nn {e3nn.__version__}'s source distribution cannot be had: {fetched.stderr.strip()[-200:]}")
    shutil.unpack_archive(archives[0], tmp_path)
    (tmp_path / "hamfast_plugin.py").write_text(PLUGIN)
    source = archives[0].name.removesuffix(".tar.gz")
    left_out = [f"--deselect={FILES[0]}::{name}" for name in STATISTICS]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-s", "-W", "ignore", "-p", "hamfast_plugin", *left_out, *FILES],
        cwd=tmp_path / source,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    ran = int(done.stdout.split("hamfast ran ")[1].split()[0])
    assert ran > 500, f"hamfast ran only {ran} products"
