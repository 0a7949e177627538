"""The registry of environment variables: complete, true, and what the documentation shows."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hamfast import environment
from hamfast.errors import HamfastError

ROOT = Path(__file__).parent.parent
REGISTRY = ROOT / "hamfast" / "environment.py"
OF_THE_SYSTEM = {"PATH", "LD_LIBRARY_PATH", "HOME"}

NAME = r"[\"']([A-Z][A-Z0-9_]+)[\"']"
READS = {
    (".py",): (
        rf"environment\.(?:text|switch|whole)\({NAME}\)",
        rf"environ(?:\.get)?[\[(]{NAME}(?!\] =)",
        rf"{NAME} (?:not )?in os\.environ",
        rf"getenv\({NAME}",
    ),
    (".cpp", ".h", ".cu", ".cuh", ".c"): (rf"getenv\({NAME}\)", rf"\bvariable\({NAME}\)"),
    (".sh",): (r"\$\{?(HAMFAST_[A-Z0-9_]+)",),
    ("CMakeLists.txt", ".cmake"): (r"\$ENV\{([A-Z0-9_]+)\}",),
    ("Makefile",): (r"\$[({](HAMFAST_[A-Z0-9_]+)[)}]",),
}
"""Endings of files, and what reads a variable in them."""


def files():
    for name in ("csrc", "kernels", "hamfast", "bench", "tests", "tools", ".ci"):
        yield from (path for path in sorted((ROOT / name).rglob("*")) if path.is_file())
    yield from (ROOT / name for name in ("setup.py", "CMakeLists.txt", "Makefile"))


def reads():
    """(variable, room of the file, file) of every read."""
    for path in files():
        patterns = [p for ends, found in READS.items() if path.name.endswith(ends) for p in found]
        if path == REGISTRY or path == Path(__file__) or not patterns:
            continue
        text = path.read_text(encoding="utf-8")
        for pattern in patterns:
            for name in re.findall(pattern, text):
                yield name, path.relative_to(ROOT).parts[0], path


def test_every_variable_that_is_read_is_registered_for_its_reader():
    wrong = [
        f"{path.relative_to(ROOT)} reads {name}"
        for name, room, path in reads()
        if name not in OF_THE_SYSTEM
        and (name not in environment.VARIABLES or room not in environment.VARIABLES[name].readers)
    ]
    assert not wrong


def test_every_registered_variable_is_read_where_it_says_so():
    found = {(name, room) for name, room, _ in reads()}
    registered = {(v.name, reader) for v in environment.VARIABLES.values() for reader in v.readers}
    assert registered <= found


@pytest.mark.parametrize("room", ["hamfast", "bench", "setup.py"])
def test_python_code_reads_through_the_registry(room):
    paths = [p for p in files() if p.suffix == ".py" and p.relative_to(ROOT).parts[0] == room and p != REGISTRY]
    assert paths
    for path in paths:
        assert not re.search(r"environ\.get\(|environ\[|getenv\(", path.read_text()), path


def test_the_documentation_shows_the_registry():
    pages = [p for p in (ROOT / "docs").rglob("*.md") if environment.BEGIN in p.read_text(encoding="utf-8")]
    assert len(pages) == 1
    shown = pages[0].read_text(encoding="utf-8").partition(environment.BEGIN)[2].partition(environment.END)[0]
    assert shown.strip() == environment.table(), f"run python -m hamfast.environment {pages[0].relative_to(ROOT)}"


def test_defaults_are_allowed_values(monkeypatch):
    for name, variable in environment.VARIABLES.items():
        monkeypatch.setenv(name, "" if variable.default.startswith("(") else variable.default)
        variable.read()


WRONG = [v.name for v in environment.VARIABLES.values() if v.allowed is not None]


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_refused_with_what_was_expected(monkeypatch, name):
    monkeypatch.setenv(name, "-1 of it")
    expected = re.escape(environment.VARIABLES[name].expected)
    with pytest.raises(HamfastError, match=rf"^{name}: expected {expected}, found '-1 of it'$"):
        environment.text(name)


OF_THE_LIBRARY = [v.name for v in environment.VARIABLES.values() if "csrc" in v.readers and v.allowed]


@pytest.mark.parametrize("name", OF_THE_LIBRARY)
def test_the_library_is_not_loaded_with_a_wrong_value(monkeypatch, name):
    monkeypatch.setenv(name, "nonsense")
    done = subprocess.run([sys.executable, "-c", "import hamfast.ops"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert f"HamfastError: {name}: expected " in done.stderr.splitlines()[-1]


def test_doctor_names_a_wrong_value_and_goes_on(monkeypatch):
    monkeypatch.setenv("HAMFAST_ISA", "nonsense")
    done = subprocess.run([sys.executable, "-m", "hamfast", "doctor"], capture_output=True, text=True, cwd=ROOT)
    assert "HAMFAST_ISA: expected" in done.stdout and "compiled library" in done.stdout, done.stdout + done.stderr


def test_train_refuses_a_wrong_value_before_lightning_reads_it(monkeypatch):
    monkeypatch.setenv("RANK", "abc")
    command = [sys.executable, "-m", "hamfast", "train", "examples/graphene/config.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.strip() == "error: RANK: expected a whole number, found 'abc'"


def test_a_page_without_the_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing")
    with pytest.raises(HamfastError, match="expected the marks"):
        environment.write_table(page)


def test_the_registry_needs_no_torch():
    code = "import sys, hamfast.environment; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
