"""Every environment variable that hamfast, its build, its benchmarks or its tests read.

``python -m hamfast.environment docs/ops.md`` writes the table of the documentation. Python code
reads a variable by :func:`text`, :func:`switch` or :func:`whole`. The compiled library reads its
own, and takes a wrong value for none; so :func:`check` looks at them before it is loaded. Needs no
torch.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from hamfast.errors import HamfastError

SWITCH = ("0", "1")
WHOLE = re.compile("[0-9]{1,15}")

READERS = {
    "csrc": "compiled library",
    "hamfast": "package",
    "setup.py": "build",
    "tools": "set-up scripts",
    "bench": "benchmarks",
    "tests": "tests",
}
"""The rooms that read variables, and what the documentation calls them."""


@dataclass(frozen=True)
class Variable:
    """One environment variable.

    Args:
        name: its name.
        description: what it does, in a sentence or a phrase, as Markdown.
        readers: the keys of ``READERS`` in whose files it is read.
        default: what counts where it is not set, or empty: a value, or, in brackets, words.
        allowed: the values; :data:`WHOLE` for whole numbers from 0 on; None for any text.
    """

    name: str
    description: str
    readers: tuple[str, ...]
    default: str = "(none)"
    allowed: tuple[str, ...] | re.Pattern[str] | None = None

    @property
    def expected(self) -> str:
        """The allowed values in words."""
        if self.allowed is None:
            return "any text"
        if isinstance(self.allowed, re.Pattern):
            return "a whole number"
        return f"{', '.join(self.allowed[:-1])} or {self.allowed[-1]}"

    def read(self) -> str:
        """The value, or the default; empty if there is neither.

        Raises:
            HamfastError: the value is not an allowed one.
        """
        value = os.environ.get(self.name, "")
        if not value:
            return "" if self.default.startswith("(") else self.default
        if isinstance(self.allowed, re.Pattern):
            allowed = self.allowed.fullmatch(value) is not None
        else:
            allowed = self.allowed is None or value in self.allowed
        if not allowed:
            raise HamfastError(f"{self.name}: expected {self.expected}, found {value!r}")
        return value


_ALL = (
    Variable(
        "HAMFAST_ISA",
        "The highest instruction set that the CPU kernels use.",
        ("csrc",),
        default="(the best of this processor)",
        allowed=("baseline", "avx2", "avx512"),
    ),
    Variable(
        "HAMFAST_HOST_POOL_MB",
        "How many MiB of the memory of large results are kept for the next ones; 0 turns this off.",
        ("csrc",),
        default="1024",
        allowed=WHOLE,
    ),
    Variable("HAMFAST_STRICT", "1 makes slow paths errors.", ("hamfast",), default="0", allowed=SWITCH),
    Variable(
        "HAMFAST_BACKEND",
        "What tensors on a GPU run on, see [backends.md](backends.md).",
        ("hamfast", "tests"),
        default="auto",
        allowed=("auto", "cuda", "triton", "cpu"),
    ),
    Variable(
        "HAMFAST_CACHE",
        "Folder of the CUDA kernels that are compiled at run time.",
        ("csrc",),
        default="(`$XDG_CACHE_HOME/hamfast`, else `~/.cache/hamfast`)",
    ),
    Variable("XDG_CACHE_HOME", "The system's folder of caches, see `HAMFAST_CACHE`.", ("csrc",)),
    Variable(
        "HAMFAST_LIBRARY",
        "Another build of `libhamfast.so`, for tests.",
        ("hamfast",),
        default="(that of the package)",
    ),
    Variable(
        "HAMFAST_POISON",
        "1 fills new results on the CPU with NaN, so that tests see elements that no kernel writes.",
        ("csrc",),
        default="0",
        allowed=SWITCH,
    ),
    Variable(
        "TRITON_INTERPRET",
        "Triton's own: 1 runs its kernels on CPU tensors, step by step.",
        ("hamfast", "tests"),
        default="0",
    ),
    Variable("RANK", "The number of this process, as `torchrun` sets it.", ("hamfast",), default="0", allowed=WHOLE),
    Variable(
        "WORLD_SIZE", "How many processes train, as `torchrun` sets it.", ("hamfast",), default="1", allowed=WHOLE
    ),
    Variable(
        "LOCAL_WORLD_SIZE",
        "How many of them run on this machine, as `torchrun` sets it.",
        ("hamfast",),
        default="1",
        allowed=WHOLE,
    ),
    Variable(
        "HAMFAST_CUDA",
        "1 compiles the CUDA kernels, 0 leaves them out.",
        ("setup.py", "tools", "tests"),
        default="(1 if `nvcc` is found)",
        allowed=SWITCH,
    ),
    Variable(
        "CUDAARCHS",
        "The architectures that the CUDA kernels are compiled for, as CMake has them: 90.",
        ("setup.py",),
        default="(those of the package)",
    ),
    Variable("CUDA_HOME", "Folder of the CUDA toolkit.", ("setup.py",), default="(that of `nvcc` on the `PATH`)"),
    Variable("CXX", "The C++ compiler.", ("setup.py",), default="c++"),
    Variable(
        "HAMFAST_BENCH_COMPILED",
        "1 adds code of `torch.compile` to the comparisons, which takes minutes.",
        ("bench",),
        default="0",
        allowed=SWITCH,
    ),
    Variable(
        "HAMFAST_BENCH_TURNS",
        "In how many shares, one after the other, each implementation is timed.",
        ("bench",),
        default="3",
        allowed=WHOLE,
    ),
    Variable("HAMFAST_BENCH_THREADS", "CPU threads.", ("bench",), default="(torch's choice)", allowed=WHOLE),
    Variable(
        "HAMFAST_PEERS",
        "Folder of the packages that hamfast is compared with.",
        ("tests",),
        default="(`peers` in the virtual environment)",
    ),
    Variable(
        "HAMFAST_SIMT_FOLDER",
        "Folder of the CUDA kernels that the host's executor compiles for single plans.",
        ("tests",),
    ),
    Variable("HAMFAST_SIMT_COMPILE", "The command, without files, by which it does.", ("tests",)),
    Variable(
        "HAMFAST_SIMT_SEED", "Seed of the order in which it runs threads.", ("tests",), default="0", allowed=WHOLE
    ),
    Variable("STUB_ERROR", "The error that the tests' stand-in for an NVIDIA driver returns.", ("tests",)),
    Variable(
        "PYTEST_XDIST_WORKER_COUNT",
        "How many processes test at once, as pytest-xdist sets it.",
        ("tests",),
        default="1",
        allowed=WHOLE,
    ),
)

VARIABLES = {variable.name: variable for variable in _ALL}
"""By name."""


def text(name: str) -> str:
    """The value of a registered variable, or its default; empty if there is neither.

    Raises:
        HamfastError: the value is not an allowed one.
    """
    return VARIABLES[name].read()


def switch(name: str) -> bool:
    """Is a registered variable 1? Raises as :func:`text`."""
    return text(name) == "1"


def whole(name: str) -> int:
    """The whole number in a registered variable, or its default; 0 if there is neither.

    Raises as :func:`text`.
    """
    return int(text(name) or 0)


def check(reader: str) -> None:
    """Looks at all variables that one of ``READERS`` reads. Raises as :func:`text`."""
    for variable in VARIABLES.values():
        if reader in variable.readers:
            variable.read()


BEGIN, END = "<!-- environment -->", "<!-- /environment -->"


def table() -> str:
    """The variables as a table in Markdown."""
    rows = ["| variable | values | default | meaning | read by |", "|---|---|---|---|---|"]
    for variable in VARIABLES.values():
        default = variable.default.strip("()") if variable.default.startswith("(") else f"`{variable.default}`"
        allowed = variable.expected
        if isinstance(variable.allowed, tuple):
            allowed = ", ".join(f"`{value}`" for value in variable.allowed)
        readers = ", ".join(READERS[reader] for reader in variable.readers)
        rows.append(f"| `{variable.name}` | {allowed} | {default} | {variable.description} | {readers} |")
    return "\n".join(rows)


def write_table(page: Path) -> None:
    """Replaces what stands between the two marks of a page of the documentation by :func:`table`.

    Raises:
        HamfastError: the page lacks the marks.
    """
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise HamfastError(f"{page}: expected the marks {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    write_table(Path(sys.argv[1]))
