"""What a build that cannot work says: one sentence, not CMake's output."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def build(tmp_path, **environment):
    source = tmp_path / "source"
    for name in ("csrc", "kernels"):
        shutil.copytree(ROOT / name, source / name)
    (source / "hamfast").mkdir()
    for name in ("__init__.py", "environment.py", "errors.py", "on_demand.py", "version.py"):
        shutil.copy(ROOT / "hamfast" / name, source / "hamfast")
    for name in ("setup.py", "CMakeLists.txt"):
        shutil.copy(ROOT / name, source)
    tools = tmp_path / "bin"
    tools.mkdir(exist_ok=True)
    for tool in ("cmake", "ninja"):
        found = shutil.which(tool, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        if found and not (tools / tool).exists():
            (tools / tool).symlink_to(found)
    program = "import runpy, sys; sys.argv = ['setup.py', 'build_ext']; runpy.run_path('setup.py')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=source, capture_output=True, text=True, env=os.environ | {"HAMFAST_CUDA": "0"} | environment,
    )  # fmt: skip
    assert done.returncode != 0
    sentence = next(line for line in done.stderr.splitlines() if line.startswith("hamfast cannot be built: "))
    assert "Traceback" not in done.stderr
    assert len(done.stdout.splitlines() + done.stderr.splitlines()) < 20
    return sentence


def test_no_nvcc(tmp_path):
    assert "HAMFAST_CUDA=1, but nvcc was found neither" in build(tmp_path, HAMFAST_CUDA="1", CUDA_HOME=str(tmp_path))


def test_no_compiler(tmp_path):
    assert "C++ compiler 'no-such-compiler' was not found" in build(tmp_path, CXX="no-such-compiler")


def test_wrong_switch(tmp_path):
    assert "HAMFAST_CUDA: expected 0 or 1, found 'yes'" in build(tmp_path, HAMFAST_CUDA="yes")


def test_no_cmake(tmp_path):
    assert "cmake was not found" in build(tmp_path, PATH=str(tmp_path / "nothing"))


def test_old_torch(tmp_path):
    (tmp_path / "old" / "torch").mkdir(parents=True)
    (tmp_path / "old" / "torch" / "__init__.py").write_text("__version__ = '2.4.1'\n")
    assert "torch 2.11 or newer is needed, found 2.4.1" in build(tmp_path, PYTHONPATH=str(tmp_path / "old"))


def test_broken_nvcc(tmp_path):
    nvcc = tmp_path / "cuda" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\necho 'nvcc fatal: it is broken' >&2\nexit 1\n")
    nvcc.chmod(0o755)
    sentence = build(tmp_path, HAMFAST_CUDA="1", CUDA_HOME=str(tmp_path / "cuda"))
    assert "the CUDA kernels did not pass configuration" in sentence
    assert "HAMFAST_CUDA=0 builds without them" in sentence


def test_a_compile_error_names_its_first_line(tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text(
        '#!/bin/sh\ncase "$*" in *info.cpp*) echo "info.cpp:1:1: error: broken on purpose"; exit 1;; esac\nexec c++ "$@"\n'
    )
    compiler.chmod(0o755)
    assert "compilation failed: info.cpp:1:1: error: broken on purpose" in build(tmp_path, CXX=str(compiler))


def test_every_folder_of_code_is_installed():
    """An editable installation finds folders that the list forgets; others do not."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        listed = set(tomllib.load(file)["tool"]["setuptools"]["packages"])
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "hamfast").rglob("*.py")}
    assert {".".join(folder.parts) for folder in folders} == listed - {"hamfast.kernels"}
