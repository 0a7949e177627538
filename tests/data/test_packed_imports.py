"""Imports into one file, against those into folders."""

import json
import multiprocessing
import os
import shutil
import signal
import sqlite3
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from hamfast.data import find_structures, packed, read_snapshot, sqlite_file
from hamfast.data.imports import import_calculations

CALCULATION = Path(__file__).parent / "native" / "cp2k-hBN_1x1_binary.tar.xz"


def same(one, other):
    np.testing.assert_allclose(one.positions, other.positions, atol=1e-12)
    for name in ("hamiltonian", "overlap"):
        a, b = getattr(one, name), getattr(other, name)
        np.testing.assert_array_equal(a.pairs, b.pairs, strict=True)
        np.testing.assert_array_equal(a.entries, b.entries, strict=True)


@pytest.fixture
def native(tmp_path):
    """A tree with a calculation of CP2K."""
    with tarfile.open(CALCULATION) as archive:
        archive.extractall(tmp_path / "tar", filter="data")
    shutil.move(next((tmp_path / "tar").iterdir()), tmp_path / "tree" / "a" / "000")
    return tmp_path / "tree"


def test_an_import_into_one_file(native, tmp_path, hamfast):
    bad = shutil.copytree(native / "a" / "000", native / "a" / "001")
    spoiled = next(bad.glob("*-KS_SPIN_1_R_*.csr"))
    spoiled.write_bytes(spoiled.read_bytes()[:500])
    target, truth = tmp_path / "set", tmp_path / "folders"
    status, output, errors = hamfast("data", "import", native, target, "--packed", "--processes", 1)
    assert status == 0 and "imported 1 structures" in output and "skipped a__001" in output, errors
    assert sorted(p.name for p in target.iterdir()) == ["import.json", packed.STRUCTURES]
    done = import_calculations(native, truth, processes=1)
    reports = [json.loads((folder / "import.json").read_text()) for folder in (target, truth)]
    assert reports[0] == reports[1] and list(done.written) == ["a__000"]
    own, folder = (read_snapshot(root) for root in (target / packed.STRUCTURES / "a__000", truth / "dft" / "a__000"))
    same(own, folder)
    # The calculation is mended, and the import started again, by two processes.
    shutil.rmtree(bad)
    for n in (1, 2):
        shutil.copytree(native / "a" / "000", native / "a" / f"00{n}")
    again = import_calculations(native, target, processes=2, pack=True)
    assert sorted(again.written) == ["a__001", "a__002"] and list(again.there) == ["a__000"]
    # One that has changed is not taken for the one that is there; removed, it is read again.
    for path in (native / "a" / "001").iterdir():
        os.utime(path, (1, 1))
    why = import_calculations(native, target, processes=1, pack=True).skipped
    assert list(why) == ["a__001"] and "earlier state of this one; remove it first" in why["a__001"]
    with sqlite3.connect(target / packed.STRUCTURES) as connection:
        connection.execute("DELETE FROM structures WHERE label = 'a__001'")
    assert list(import_calculations(native, target, processes=1, pack=True).written) == ["a__001"]
    # A label is in the file or in a folder.
    assert "is there already" in import_calculations(native, target, processes=1).skipped["a__000"]
    assert list(import_calculations(native, truth, processes=1, pack=True).skipped) == ["a__000"]


def slow_import(source, target):
    original = packed.row_of
    packed.row_of = lambda *arguments: (time.sleep(0.03), original(*arguments))[1]
    sqlite_file.SECONDS = 0.0
    import_calculations(source, target, processes=1, pack=True)


def test_an_import_that_is_killed_goes_on(native, tmp_path):
    for n in range(1, 12):
        (native / "a" / f"{n:03}").symlink_to(shutil.copytree(native / "a" / "000", tmp_path / "real" / str(n)))
    target, killed, before = tmp_path / "set", 0, 0
    while True:
        process = multiprocessing.get_context("fork").Process(target=slow_import, args=(native, target))
        process.start()
        while process.is_alive() and len(kept(target)) < before + 4:
            time.sleep(0.02)
        if not process.is_alive():
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        killed, before = killed + 1, len(kept(target))
    assert killed >= 2 and len(kept(target)) == 12
    truth = read_snapshot(native / "a" / "000")
    for path in find_structures(target):
        same(read_snapshot(path), truth)


def kept(target):
    try:
        with sqlite3.connect(f"file:{target / packed.STRUCTURES}?mode=ro", uri=True, timeout=10) as file:
            return file.execute("SELECT label FROM structures").fetchall()
    except sqlite3.OperationalError:  # not there, no tables yet, or what was killed is to be undone
        return []
