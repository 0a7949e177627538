"""Every path, and every name in backticks, that pages, docstrings and comments mention exists;
lines of pages are short.

A name exists if it is an identifier of the code (comments and docstrings do not count), a key or
word in a string without spaces, or an attribute of a package that the code imports.
"""

import ast
import builtins
import fnmatch
import importlib
import io
import re
import subprocess
import tokenize
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("bench", "csrc", "docs", "examples", "hamfast", "kernels", "tests", "tools")
SOURCES = {".py", ".cpp", ".h", ".cu", ".cuh", ".c"}
OTHER_CODE = {".in", ".sh", ".toml", ".txt", ".yaml"}

FOREIGN = {
    # Made by the build, or by a run that nobody has made yet.
    "hamfast/lib/libhamfast.so",
    "hamfast/_native",
    "hamfast._native",
    "bench/results/gpu.csv",
    "hamfast_plan.h",  # written for one plan while hamfast runs
    # Of other programs.
    "cuda_bf16.h",
    "init_chg",
    "read_file_dir",
    "Si.upf",
    "Si_2s2p1d.orb",
    "cuda_fp16.h",
    "adj_t",  # PyG's argument
    "naive",  # a method of cuEquivariance
    # Settings and files of DFT codes.
    "out_mat_hs2",
    "OUT.SUFFIX",
    "KS_SPIN_1_R_",
    "KS_CSR_WRITE",
    "S_CSR_WRITE",
    "REAL_SPACE",
    "PRINT_LEVEL",
    "output_rs_matrices",
    "hdf5",
    # Symbols that the text beside them explains.
    "act",
    "w3j",
}
"""What exists and is not found, each with its reason."""

MODULES = ("torch", "torch.nn", "e3nn.o3", "torch_geometric.nn")
"""Names of these may stand alone."""


@cache
def files() -> tuple[str, ...]:
    """All files of the repository, those not yet added included."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return tuple(name for name in listed.stdout.splitlines() if (ROOT / name).exists())


def of_type(*endings):
    return [name for name in files() if name.endswith(endings)]


# --- what the code has
# -------------------------------------------------------------------------------------------------


@cache
def identifiers() -> frozenset[str]:
    found = set(dir(builtins))
    for name in files():
        path = ROOT / name
        if name == "tests/test_names.py":
            continue
        if path.suffix == ".py":
            found |= python_names(path.read_text())
        elif path.suffix in SOURCES:
            found |= set(re.findall(r"\w+", without_comments(path.read_text())))
        elif path.suffix in OTHER_CODE or path.name == "Makefile":
            lines = [line.split(" #")[0] for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
            found |= set(re.findall(r"\w+", "\n".join(lines)))
    return frozenset(found)


def python_names(text: str) -> set[str]:
    """Identifiers, and words of strings without spaces: keys, file names, names of ops."""
    docstrings = {line for line, _ in docstrings_of(text)}
    found = set()
    for token in tokens_of(text):
        if token.type == tokenize.NAME:
            found.add(token.string)
        elif token.type == tokenize.STRING and token.start[0] not in docstrings and " " not in token.string:
            found |= set(re.findall(r"\w+", token.string))
    return found


@cache
def tokens_of(text: str) -> list[tokenize.TokenInfo]:
    return list(tokenize.generate_tokens(io.StringIO(text).readline))


@cache
def docstrings_of(text: str) -> list[tuple[int, str]]:
    """Line and text of every string that is a statement: docstrings of modules, classes, functions
    and attributes."""
    statements = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Expr))
    return [
        (node.value.lineno, node.value.value)
        for node in statements
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]


COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])'", re.S)


def without_comments(text: str) -> str:
    return COMMENT.sub(lambda found: " " if found[0].startswith("/") else found[0], text)


# --- what the texts mention
# -----------------------------------------------------------------------------------------------


def prose_of(name: str) -> list[tuple[int, str]]:
    """Line and text of what a reader reads: a page without its code blocks, or a source's
    docstrings and comments."""
    text = (ROOT / name).read_text()
    if name.endswith(".md"):
        code = re.compile(r"^( *)```.*?^\1```|^<!-- (\w+) -->$.*?^<!-- (?:/|end )\2 -->$", re.M | re.S)
        return [(1, code.sub(lambda found: "\n" * found[0].count("\n"), text))]
    if name.endswith(".py"):
        comments = [(token.start[0], token.string) for token in tokens_of(text) if token.type == tokenize.COMMENT]
        return docstrings_of(text) + joined(comments)
    comments = [(text.count("\n", 0, c.start()) + 1, c[0]) for c in COMMENT.finditer(text) if c[0].startswith("/")]
    return joined(comments)


def joined(comments: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Comments on lines that follow one another as one text: spans go over the ends of lines."""
    found: list[tuple[int, str]] = []
    for line, text in comments:
        if found and line == found[-1][0] + found[-1][1].count("\n") + 1:
            found[-1] = (found[-1][0], f"{found[-1][1]}\n{text}")
        else:
            found.append((line, text))
    return found


SPAN = re.compile(r"(`+)([^`]+?)\1")
PATH = re.compile(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./*<>{{}},-]*[\w*>}}]")
SOURCE_FILE = re.compile(r"(?<![\w./<>*-])[\w/<>*]+\.(?:cuh|cu|cpp|h|py|sh)\b(?!\()")


def problems_in(text: str) -> list[tuple[int, str]]:
    """(lines before it, what does not exist)."""
    found = []

    def note(at, word):
        found.append((text.count("\n", 0, at), word))

    for pattern in (PATH, SOURCE_FILE):
        for match in pattern.finditer(text):
            if not path_exists(match[0]):
                note(match.start(), match[0])
    for match in SPAN.finditer(text):
        for word in unknown_words(re.sub(r"\s*\n\s*(?:#|//)?\s*", " ", match[2])):
            note(match.start(), word)
    return list(dict.fromkeys(found))


def path_exists(path: str) -> bool:
    """``*`` and ``<op>`` stand for anything; a name without a folder may be in any."""
    if path in FOREIGN:
        return True
    pattern = re.sub(r"<\w+>|\{[^}]*\}|\bNAME\b", "*", path.rstrip("."))
    folder = pattern.rstrip("/") + "/"
    return any(
        fnmatch.fnmatch(name, pattern)
        or fnmatch.fnmatch(name, f"*/{pattern}")
        or name.startswith(folder)
        or fnmatch.fnmatch(name, f"{folder}*")
        for name in files()
    )


NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")


def unknown_words(span: str) -> list[str]:
    """Of what stands in backticks: the names that do not exist. In formulas only those that can be
    nothing but names are looked at."""
    if span.startswith("hamfast ") or span.startswith("make "):
        return unknown_in_command(span)
    if re.fullmatch(r"[\w.-]+\.[a-z]\w+", span) and (path_exists(span) or file_name_known(span)):
        return []
    if re.fullmatch(r"\*\w+|\w+\*", span):
        return [] if fnmatch.filter(identifiers(), span) else [span]
    whole = NAME.fullmatch(span.removesuffix("()").removesuffix("="))
    if whole:
        return [] if known(whole[0]) or re.fullmatch(r"[A-Za-z]_[a-z]{1,3}", span) else [span]
    words = [match[0] for match in NAME.finditer(PATH.sub(" ", SOURCE_FILE.sub(" ", span)))]
    return [word for word in words if looks_like_a_name(word) and not known(word)]


def looks_like_a_name(word: str) -> bool:
    """Not a symbol with an index, as in ``sum_j C_ijk y_j``; but gradients and directions are
    names."""
    indexed = re.fullmatch(r"([A-Za-z]+)_(?:[a-z]|[ijk]{2,3}|m0)", word)
    if indexed and indexed[1] not in ("grad", "tangent"):
        return False
    return bool(re.search(r"[a-z]{2,}_[a-z]|[a-z]{2,}[A-Z][a-z]|[A-Z]{2,}_[A-Z]{2,}", word))


def file_name_known(name: str) -> bool:
    """Files that programs write and read: their names are in the code's strings."""
    return all(part in identifiers() for part in re.findall(r"\w+", name))


def unknown_in_command(command: str) -> list[str]:
    words = command.split()
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        return [] if words[1] in targets else [command]
    files = [ROOT / "hamfast/cli.py", *sorted((ROOT / "hamfast/commands").glob("*.py"))]
    cli = "\n".join(file.read_text() for file in files)
    unknown = [w for w in words[1:] if w.startswith("--") and f'"{w}"' not in cli and not option_of_argument(w, cli)]
    commands = set(re.findall(r"^def (\w+)\(", cli, re.M)) | set(re.findall(r'name="(\w+)"', cli))
    return unknown + [w for w in words[1:2] if re.fullmatch(r"\w+", w) and w not in commands]


def option_of_argument(option: str, cli: str) -> bool:
    """Typer makes ``--num-bands`` of the argument num_bands."""
    name = option.removeprefix("--").removeprefix("no-").replace("-", "_")
    return re.search(rf"^\s+{name}: ", cli, re.M) is not None or option == "--help"


@cache
def known(name: str) -> bool:
    parts = name.split(".")
    if name in FOREIGN or any(resolves(f"{module}.{name}") for module in MODULES):
        return True
    if all(part in identifiers() or len(part) == 1 for part in parts):
        return parts[0] != "hamfast" or len(parts) == 1 or resolves(name)
    return resolves(name)


@cache
def resolves(name: str) -> bool:
    """Is it an attribute of a module, or of something in one?"""
    names = {"o3": "e3nn.o3", "tl": "triton.language", "pl": "lightning"}
    parts = name.split(".")
    parts[:1] = names.get(parts[0], parts[0]).split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        try:
            for part in parts[length:]:
                found = getattr(found, part)
        except AttributeError:
            return False
        return True
    return False


# --- tests
# -------------------------------------------------------------------------------------------------


def report(names):
    found = []
    for name in names:
        for line, text in prose_of(name):
            found += [f"{name}:{line + before}: {word}" for before, word in problems_in(text)]
    return found


@pytest.mark.parametrize(
    "endings", [(".md",), (".py",), (".cpp", ".h", ".cu", ".cuh", ".c")], ids=["pages", "python", "c++"]
)
def test_what_is_mentioned_exists(endings):
    assert report(of_type(*endings)) == []


def test_lines_of_pages_are_short():
    """At most 100 columns, except tables, code, and lines with a link that cannot be broken."""
    long = []
    for name in of_type(".md"):
        for _, text in prose_of(name):
            for number, line in enumerate(text.splitlines(), 1):
                is_free = line.startswith("    ") or line.lstrip().startswith("|") or "](" in line or "://" in line
                if len(line) > 100 and not is_free:
                    long.append(f"{name}:{number}: {len(line)} columns")
    assert long == []


@pytest.mark.parametrize(
    "text",
    [
        "see kernels/gone.cuh",
        "see `kernels/gone_*.cuh`",
        "as gone_kernel.cuh has it",
        "`hamfast.ops.no_such_op`",
        "``no_such_name``",
        "`EdgeIndex.no_such_name`",
        "`grad_*_no_such`",
        "`no_such_*`",
        "the form `<x, grad_k> + grad_no_such_k`",
        "`torch.library.no_such_name`",
        "`edge_index(no_such_argument=1)`",
        ":func:`hamfast.plan.no_such_function`",
        "`hamfast predict --no-such-option`",
        "`make no-such-target`",
        "`no_such_file.json`",
    ],
)
def test_what_does_not_exist_is_found(text):
    assert problems_in(text)


def test_comments_are_read(tmp_path, monkeypatch):
    """Also over the end of a line, and with the line it is on; what only a comment names does not
    exist."""
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "a.cpp").write_text('int a;\n// sees `no_such\n// name`, `no_such_name`\nauto s = "// no_such_text";\n')
    (tmp_path / "a.py").write_text('"""``no_such_name``"""\nx = 1\n"""``other_name``"""\n# see no_such.py\n')
    assert report(["a.cpp"]) == ["a.cpp:2: no_such", "a.cpp:3: no_such_name"]
    assert report(["a.py"]) == ["a.py:1: no_such_name", "a.py:3: other_name", "a.py:4: no_such.py"]
    assert "no_such_name" not in python_names((tmp_path / "a.py").read_text())
