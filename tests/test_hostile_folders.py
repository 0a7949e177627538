"""Structure folders with something wrong in them: a right result, or one sentence, and every file
as it was.

Valid folders of both layouts are changed at random, in every file, and given to the commands that
read them.
"""

import json
import shutil
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit import tree

from hamfast.cli import main

HERE = Path(__file__).parent / "data"
SOURCES = {
    "deeph": HERE / "fixtures" / "dft" / "graphene_1x1_000",
    "hBN": HERE / "fixtures" / "dft" / "hBN_1x1_000",
    "deeph-legacy": HERE / "legacy" / "graphene_1x1_000",
}
TEXTS = {
    "deeph": ("POSCAR", "info.json"),
    "hBN": ("POSCAR", "info.json"),
    "deeph-legacy": ("lat.dat", "site_positions.dat", "element.dat", "orbital_types.dat", "info.json"),
}
H5 = {
    "deeph": ("hamiltonian.h5", "overlap.h5"),
    "hBN": ("hamiltonian.h5", "overlap.h5"),
    "deeph-legacy": ("hamiltonians.h5", "overlaps.h5"),
}
ODD_VALUES = (
    None, True, False, 0, 1, -1, -8, 2.5, 1e300, float("nan"), float("inf"), "", "false", "s2p2d1", "[x]", [], {}, [1, "a"],
    {"C": [0, 1]}, {"C": "s2p2d1"}, {"C": [1.5]}, 10**40,
)  # fmt: skip
ODD_WORDS = (
    "nan",
    "inf",
    "0",
    "-1",
    "1e300",
    "1.5",
    "true",
    "C",
    "[red]",
    "",
    "0 0 0",
    "1 2 3 4 5",
    "\x00",
    "ü",
    "1,5",
)


def change_text(draw, path):
    """A file cut, emptied, in another encoding, or with lines and words exchanged."""
    raw = path.read_bytes()
    how = draw(
        st.sampled_from(["cut", "empty", "latin", "utf16", "line", "word", "swap", "twice", "folder", "gone", "bytes"])
    )
    lines = raw.decode().splitlines()
    if how == "cut":
        path.write_bytes(raw[: draw(st.integers(0, len(raw)))])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "latin":
        path.write_bytes(raw + "ä".encode("latin-1"))
    elif how == "utf16":
        path.write_text(raw.decode(), encoding="utf-16")
    elif how in ("line", "word", "swap"):
        n = draw(st.integers(0, len(lines) - 1))
        if how == "line":
            lines[n] = draw(st.sampled_from(ODD_WORDS))
        elif how == "swap":
            m = draw(st.integers(0, len(lines) - 1))
            lines[n], lines[m] = lines[m], lines[n]
        elif lines[n].split():
            words = lines[n].split()
            words[draw(st.integers(0, len(words) - 1))] = draw(st.sampled_from(ODD_WORDS))
            lines[n] = " ".join(words)
        path.write_text("\n".join(lines) + "\n")
    elif how == "twice":
        path.write_bytes(raw + raw)
    elif how == "bytes":
        path.write_bytes(draw(st.binary(max_size=200)))
    else:
        path.unlink()
        if how == "folder":
            path.mkdir()


def change_info(draw, path):
    """A key of another type, a key more, or a key less."""
    info = json.loads(path.read_text())
    key = draw(st.sampled_from([*sorted(info), "spinful", "isspinful", "occupation", "cutoff", "[/x]"]))
    if draw(st.booleans()):
        info[key] = draw(st.sampled_from(ODD_VALUES))
    else:
        info.pop(key, None)
    path.write_text(json.dumps(info))


def change_h5(draw, path):
    """A file cut, or a data set of another shape, type, size or content."""
    how = draw(
        st.sampled_from(["cut", "flip", "gone", "group", "huge", "type", "shape", "nan", "value", "order", "less"])
    )
    raw = path.read_bytes()
    if how == "cut":
        path.write_bytes(raw[: draw(st.integers(0, len(raw)))])
        return
    if how == "flip":
        at = draw(st.integers(0, min(len(raw), 4000) - 1))
        path.write_bytes(raw[:at] + bytes([raw[at] ^ draw(st.integers(1, 255))]) + raw[at + 1 :])
        return
    with h5py.File(path, "r+") as file:
        name = draw(st.sampled_from(sorted(file)))
        data = file[name][()]
        del file[name]
        if how == "group":
            file.create_group(name)
        elif how == "huge":
            file.create_dataset(
                name, shape=(2_000_000_000, *data.shape[1:]), dtype=data.dtype, chunks=(8, *data.shape[1:])
            )
        elif how == "type":
            file[name] = draw(
                st.sampled_from(
                    [data.astype(np.float64), data.astype("S3"), data.astype(np.complex64), data.astype(np.int8)]
                )
            )
        elif how == "shape":
            file[name] = draw(st.sampled_from([data.ravel(), data[None], data[..., None], data[:-1], np.array(1.0)]))
        elif how in ("nan", "value"):
            flat = data.ravel()
            flat[draw(st.integers(0, flat.size - 1))] = np.nan if how == "nan" and data.dtype.kind == "f" else 77
            file[name] = data
        elif how == "order":
            file[name] = np.ascontiguousarray(data[::-1])
        elif how == "less":
            file[name] = data[: data.shape[0] // 2]


@st.composite
def changed_folders(draw):
    """(layout, function that changes a copy of the layout's folder)."""
    layout = draw(st.sampled_from(sorted(SOURCES)))
    target = draw(st.sampled_from(["text", "info", "h5"]))
    name = draw(st.sampled_from((TEXTS if target == "text" else H5)[layout])) if target != "info" else "info.json"
    change = {"text": change_text, "info": change_info, "h5": change_h5}[target]
    data = draw(st.data())
    return layout, lambda folder: change(data.draw, folder / name)


def call(arguments):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            main([str(a) for a in arguments])
    except SystemExit as end:
        return end.code or 0
    return 0


def check(tmp, capsys, layout, change):
    work = tmp / "a [b] c"
    shutil.rmtree(work, ignore_errors=True)
    folder = shutil.copytree(SOURCES[layout], work / "set" / "s [x]")
    change(folder)
    before = tree(work)
    bands = ["bands", folder, "--kpath", "A 0 0 0, B 1/2 0 0", "--points", 2, "--fermi", 0, "--output", work / "bands"]
    for arguments in (["data", "info", work / "set"], bands, ["data", "convert", work / "set", work / "new"]):
        capsys.readouterr()
        status = call(arguments)
        output, errors = capsys.readouterr()
        after = tree(work)
        assert before.items() <= after.items(), arguments
        assert "fault of hamfast" not in errors, errors
        assert "Traceback" not in errors + output
        if status:
            assert status == 1
            sentences = [line for line in errors.splitlines() if line.startswith("error: ")]
            assert len(sentences) == 1, errors
            assert not any(line and not line.startswith(("error: ", "warning: ")) for line in errors.splitlines()), (
                errors
            )
            assert not (work / "bands").exists() or arguments[0] == "data"
        elif arguments[0] == "bands":
            content = json.loads((work / "bands" / "bands.json").read_text())
            for name in ("DFT", "predicted"):
                energies = content.get(name, {}).get("energies", [[0.0]])
                assert np.all(np.isfinite(np.array(energies, dtype=float)))
                # What is left of 26 levels at Gamma is what the unchanged files give: nothing in
                # between is believed.
                if name in content and not np.allclose(energies, expected(layout), atol=1e-3):
                    assert changed_matrices(folder, layout), (layout, energies)


EXPECTED: dict = {}


def expected(layout):
    """Band energies by NumPy and SciPy alone, from the files' own layout."""
    if layout not in EXPECTED:
        import scipy.linalg

        from hamfast.data import read_snapshot

        snapshot = read_snapshot(SOURCES[layout])
        levels = []
        for k in ((0, 0, 0), (0.25, 0, 0), (0.5, 0, 0)):
            dense = []
            for matrix in (snapshot.hamiltonian, snapshot.overlap):
                total = np.zeros((26, 26), dtype=complex)
                for n, (a, b, c, i, j) in enumerate(matrix.pairs.tolist()):
                    phase = np.exp(2j * np.pi * np.dot(k, (a, b, c)))
                    total[13 * i : 13 * i + 13, 13 * j : 13 * j + 13] += phase * matrix.block(n)
                dense.append((total + total.conj().T) / 2)
            levels.append(scipy.linalg.eigvalsh(*dense))
        EXPECTED[layout] = np.array(levels)
    return EXPECTED[layout]


def changed_matrices(folder, layout):
    """Is a matrix or the orbital order another one? Then bands are others, too, and rightly so."""
    names = (*H5[layout], "orbital_types.dat", "element.dat", "info.json")
    return any((folder / n).exists() != (SOURCES[layout] / n).exists() or ((folder / n).exists() and (folder / n).read_bytes() != (SOURCES[layout] / n).read_bytes()) for n in names)  # fmt: skip


COMMON = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
}


@given(changed_folders())
@settings(max_examples=60, derandomize=True, **COMMON)
def test_changed_folders(tmp_path_factory, capsys, case):
    check(tmp_path_factory.getbasetemp() / "short", capsys, *case)


@pytest.mark.long
@given(changed_folders())
@settings(max_examples=3000, **COMMON)
def test_changed_folders_long(tmp_path_factory, capsys, case):
    check(tmp_path_factory.getbasetemp() / "long", capsys, *case)
