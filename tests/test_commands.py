"""What the commands do with odd names, places, options and structures; each failure is one sentence
and loses nothing."""

import json
import os
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
from kit import cases, tiny_checkpoint, tree

from hamfast import cli
from hamfast.data import by_name, read_snapshot
from hamfast.data.formats import names_apart
from hamfast.training import load_config

ODD = "a [bold]b[/c] d"
"""A folder's name that is markup, and has spaces."""


@pytest.fixture(scope="module")
def model(tmp_path_factory, fixtures):
    folders = [fixtures / "graphene_1x1_000", fixtures / "graphene_1x1_001"]
    return tiny_checkpoint(tmp_path_factory.mktemp("model") / ODD / "model.ckpt", folders)


def failed(result, *words):
    status, _, errors = result
    assert status == 1
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert "fault of hamfast" not in errors
    for word in words:
        assert word in errors


def done(result):
    status, output, errors = result
    assert status == 0, errors
    return output


# --- names
# -------------------------------------------------------------------------------------------------


def test_names_that_are_markup(tmp_path, fixtures, model, hamfast):
    root = tmp_path / ODD / "set"
    structure = shutil.copytree(fixtures / "graphene_1x1_000", root / "dft" / "[relaxed]")
    shutil.copytree(fixtures / "graphene_1x1_001", root / "dft" / "x[/y]".replace("/", "-"))
    assert str(root / "dataset_split.json") in done(hamfast("data", "info", root)) or "make one with" in done(
        hamfast("data", "info", root)
    )
    out = tmp_path / ODD / "out [red]"
    output = done(hamfast("predict", model, root, "--output", out))
    assert str(out / "[relaxed]" / "hamiltonian_pred.h5") in output
    output = done(hamfast("evaluate", model, root, "--output", tmp_path / "[e].json"))
    assert "[relaxed]" in output
    assert str(tmp_path / "[e].json") in output
    output = done(
        hamfast(
            "bands", structure, "--kpath", "GK", "--points", 4, "--mesh", 2, 2, 1, "--prediction", out / "[relaxed]"
        )
    )
    assert str(structure / "bands" / "bands.png") in output
    output = done(hamfast("data", "convert", root, tmp_path / "[old]", "--to", "deeph-legacy"))
    assert str(tmp_path / "[old]") in output
    failed(hamfast("data", "info", tmp_path / "[nowhere] [/x]"), str(tmp_path / "[nowhere] [/x]"))


def test_structures_of_one_name_are_kept_apart(tmp_path, fixtures, model, hamfast):
    for parent, label in (("a", "graphene_1x1_000"), ("b", "graphene_1x1_001")):
        shutil.copytree(fixtures / label, tmp_path / parent / "s")
    out = tmp_path / "out"
    done(hamfast("predict", model, tmp_path / "a" / "s", tmp_path / "b" / "s", "--output", out))
    assert sorted(p.name for p in out.iterdir()) == ["a__s", "b__s"]
    for parent in ("a", "b"):
        given, copy = (
            read_snapshot(tmp_path / parent / "s"),
            read_snapshot(out / f"{parent}__s", hamiltonian="prediction"),
        )
        np.testing.assert_allclose(copy.positions, given.positions, atol=1e-9)
        assert copy.hamiltonian is not None
    # In two commands, too: the second one's structure is another.
    done(hamfast("predict", model, tmp_path / "a" / "s", "--output", tmp_path / "one"))
    before = tree(tmp_path / "one")
    failed(
        hamfast("predict", model, tmp_path / "b" / "s", "--output", tmp_path / "one"),
        "holds another structure than", "choose another --output",
    )  # fmt: skip
    assert tree(tmp_path / "one") == before
    done(hamfast("predict", model, tmp_path / "a" / "s", "--output", tmp_path / "one"))  # its own: again


@pytest.mark.parametrize(
    "paths, names",
    cases(
        {
            "different": (["/r/a", "/r/b"], ["a", "b"]),
            "same": (["/r/a/s", "/r/b/s"], ["a__s", "b__s"]),
            "one-same": (["/q/a/s", "/r/a/s", "/r/t"], ["q__a__s", "r__a__s", "t"]),
        }
    ),
)
def test_names_apart(tmp_path, paths, names):
    folders = [tmp_path / p[1:] for p in paths]
    assert names_apart(folders) == names


def test_the_output_folder_may_be_the_input(tmp_path, fixtures, model, hamfast):
    """The structure's files are not written anew."""
    structure = shutil.copytree(fixtures / "graphene_1x1_000", tmp_path / "set" / "s")
    before = tree(structure)
    done(hamfast("predict", model, structure, "--output", tmp_path / "set"))
    after = tree(structure)
    assert after.pop("hamiltonian_pred.h5")
    assert after == before


# --- files
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["deeph-legacy", "deeph"])
def test_convert_takes_everything_along(tmp_path, fixtures, hamfast, layout):
    root = tmp_path / "set"
    structure = shutil.copytree(fixtures / "graphene_1x1_000", root / "dft" / "s")
    snapshot = read_snapshot(structure)
    by_name("deeph").write_prediction(snapshot, snapshot.hamiltonian, structure)
    (root / "dataset_split.json").write_text('{"train": ["s"]}')
    (structure / "bands").mkdir()
    output = done(hamfast("data", "convert", root, tmp_path / "new", "--to", layout))
    assert f"left behind: {structure / 'bands'}" in output
    copied = tmp_path / "new" / ("dft/s" if layout == "deeph" else "s")
    assert (copied / "bands_cp2k.json").read_bytes() == (structure / "bands_cp2k.json").read_bytes()
    assert (tmp_path / "new" / "dataset_split.json").read_text() == '{"train": ["s"]}'
    copy = read_snapshot(copied, hamiltonian="prediction").hamiltonian
    for pair, n in snapshot.hamiltonian.index.items():
        np.testing.assert_array_equal(copy.block(copy.index[pair]), snapshot.hamiltonian.block(n))
    failed(hamfast("data", "convert", root, tmp_path / "new", "--to", layout), "not empty; choose another target")


def test_predictions_in_single_precision(tmp_path, fixtures, model, hamfast):
    source = fixtures / "graphene_1x1_000"
    sizes = {}
    for options in ([], ["--precision", "float32"], ["--no-compress"]):
        out = tmp_path / "_".join(options or ["plain"])
        done(hamfast("predict", model, source, "--output", out, *options))
        path = out / source.name / "hamiltonian_pred.h5"
        with h5py.File(path) as file:
            sizes[out.name] = file["entries"].dtype, file["entries"].compression, path.stat().st_size
    assert sizes["plain"][:2] == (np.float64, "gzip")
    assert sizes["--precision_float32"][:2] == (np.float32, "gzip")
    assert sizes["--no-compress"][:2] == (np.float64, None)
    failed(hamfast("predict", model, source, "--precision", "float16"), "expected float32 or float64, found 'float16'")


def test_places_that_cannot_be_written(tmp_path, fixtures, model, hamfast):
    source = fixtures / "graphene_1x1_000"
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    failed(hamfast("predict", model, source, "--output", tmp_path / "file"), "could not be written")
    failed(
        hamfast("evaluate", model, source, "--no-eigenvalues", "--output", tmp_path / "folder"), "could not be written"
    )
    failed(hamfast("bands", source, "--kpath", "GK", "--points", 2, "--mesh", 1, 1, 1, "--output", tmp_path / "file"),
           "could not be written")  # fmt: skip
    failed(hamfast("data", "convert", source, tmp_path / "file"), "file")
    failed(hamfast("config", tmp_path / "file"), "exists already")
    failed(hamfast("config", tmp_path / "file" / "x.yaml"), "could not be written")
    assert (tmp_path / "file").read_text() == "mine"


def test_files_that_are_something_else(tmp_path, fixtures, model, hamfast):
    source = fixtures / "graphene_1x1_000"
    (tmp_path / "noise.json").write_text('{"meV": 3}')
    failed(hamfast("evaluate", model, source, "--label-noise", tmp_path / "noise.json"), 'expected {"meV": ')
    failed(hamfast("evaluate", tmp_path, source))
    failed(hamfast("evaluate", tmp_path / "noise.json", source))
    failed(hamfast("predict", tmp_path / "nothing.ckpt", source), "not found")
    failed(hamfast("train", tmp_path))
    failed(hamfast("data", "split", tmp_path / "noise.json"))
    failed(hamfast("bands", tmp_path))
    failed(hamfast("evaluate", model), "nowhere")


def test_a_target_is_not_written_over(tmp_path, fixtures, model, hamfast):
    """A bare structure, moved a little; another functional's matrices; somebody's other files."""
    source = shutil.copytree(fixtures / "graphene_1x1_000", tmp_path / "in" / "s")
    target = shutil.copytree(source, tmp_path / "out" / "s")
    by_name("deeph").write_matrix(read_snapshot(source).overlap, target / "hamiltonian.h5")
    before = tree(target)
    done(hamfast("predict", model, tmp_path / "in", "--output", tmp_path / "out"))
    after = tree(target)
    assert after.pop("hamiltonian_pred.h5")
    assert after == before
    for name in ("hamiltonian.h5", "overlap.h5"):
        (source / name).unlink()
    lines = (source / "POSCAR").read_text().splitlines()
    lines[-1] = " ".join(f"{float(x) + 0.01:.6f}" for x in lines[-1].split()[:3])
    (source / "POSCAR").write_text("\n".join(lines) + "\n")
    before = tree(target)
    failed(hamfast("predict", model, tmp_path / "in", "--output", tmp_path / "out"), "atom 1 has moved by")
    (target / "info.json").unlink()
    (target / "OUTCAR").write_text("mine")
    failed(hamfast("predict", model, tmp_path / "in", "--output", tmp_path / "out"), "found other files")
    assert (tree(target) | {"info.json": before["info.json"], "OUTCAR": b"mine"}) == before | {"OUTCAR": b"mine"}


def test_evaluate_keeps_structures_of_one_name_apart(tmp_path, fixtures, model, hamfast):
    for parent, label in (("a", "graphene_1x1_000"), ("b", "graphene_1x1_001")):
        shutil.copytree(fixtures / label, tmp_path / parent / "s")
    done(hamfast("evaluate", model, tmp_path / "a", tmp_path / "b", "--output", tmp_path / "e.json"))
    both = json.loads((tmp_path / "e.json").read_text())["stages"]["stage 1"]
    single = []
    for parent in ("a", "b"):
        done(hamfast("evaluate", model, tmp_path / parent, "--output", tmp_path / "e.json"))
        single.append(json.loads((tmp_path / "e.json").read_text())["stages"]["stage 1"])
    assert set(both["MAE_by_structure"]) == set(both["bands_by_structure"]) == {"a__s", "b__s"}
    for key in ("MAE_all", "eigenvalue_MAE", "eigenvalue_shift"):
        assert both[key] == pytest.approx(np.mean([s[key] for s in single]))


def test_convert_leaves_nothing_half_done_and_no_stale_file(tmp_path, fixtures, hamfast):
    for label in "abc":
        shutil.copytree(fixtures / "graphene_1x1_000", tmp_path / "set" / "dft" / label)
    (tmp_path / "set" / "README.md").write_text("read me")
    stale = tmp_path / "set" / "dft" / "a" / "lat.dat"
    stale.write_text("1 0 0\n0 1 0\n0 0 1\n")
    whole = (tmp_path / "set" / "dft" / "c" / "overlap.h5").read_bytes()
    (tmp_path / "set" / "dft" / "c" / "overlap.h5").write_bytes(whole[:3000])
    failed(hamfast("data", "convert", tmp_path / "set", tmp_path / "new", "--to", "deeph-legacy"), "overlap.h5")
    assert not (tmp_path / "new").exists()
    (tmp_path / "set" / "dft" / "c" / "overlap.h5").write_bytes(whole)
    output = done(hamfast("data", "convert", tmp_path / "set", tmp_path / "new", "--to", "deeph-legacy"))
    assert f"left behind: {stale}" in output
    np.testing.assert_allclose(read_snapshot(tmp_path / "new" / "a").cell, read_snapshot(tmp_path / "set/dft/a").cell)
    assert (tmp_path / "new" / "README.md").read_text() == "read me"


def test_the_folder_one_is_in(tmp_path, fixtures, hamfast, monkeypatch):
    shutil.copytree(fixtures / "graphene_1x1_000", tmp_path / "s")
    monkeypatch.chdir(tmp_path / "s")
    done(hamfast("data", "convert", ".", tmp_path / "new"))
    assert (tmp_path / "new" / "dft" / "s" / "POSCAR").exists()


# --- options
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, words",
    cases(
        {
            "mesh-zero": (["--mesh", 0, 0, 0], "mesh: expected three whole numbers from 1 on, found (0, 0, 0)"),
            "negative-bands": (["--num-bands", -3], "number of bands: expected 1 or more, found -3"),
            "one-point": (["--points", 1], "points along the path: expected 2 or more, found 1"),
            "window-nan": (["--window", "nan", 1], "window: expected two numbers of eV"),
            "window-wrong-order": (
                ["--window", 2, -2],
                "window: expected two numbers of eV, the lower one first, found (2.0, -2.0)",
            ),
            "fermi-nan": (["--fermi", "nan"], "Fermi level: expected a number of eV, found nan"),
            "projection-zero": (["--project-overlap", 0], "--project-overlap: expected a positive number, found 0.0"),
            "path-nan": (["--kpath", "A 0 0 0, B nan 0 0"], "expected 'NAME k1 k2 k3', found 'B nan 0 0'"),
            "prediction-nowhere": (["--prediction", "/nowhere"], "/nowhere: not a structure folder"),
        }
    ),
)
def test_options_of_bands(fixtures, hamfast, tmp_path, options, words):
    failed(
        hamfast("bands", fixtures / "graphene_1x1_000", "--kpath", "GK", "--output", tmp_path / "b", *options), words
    )
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    "device",
    cases(
        {
            "unknown": "banana",
            "no-gpu": "cuda",
            "no-such-gpu": "cuda:99",
            "empty": "",
            "malformed": "cpu:7:7",
            "meta": "meta",
        }
    ),
)
def test_devices(fixtures, hamfast, model, device):
    import torch

    if device == "cuda" and torch.cuda.is_available():
        device = "cuda:99"
    failed(hamfast("predict", model, fixtures / "graphene_1x1_000", "--device", device), "device: ")


def test_parts(tmp_path, fixtures, hamfast, model):
    failed(hamfast("data", "split", fixtures.parent, "--fractions", "nan", "0.5", "0.5"), "fractions: expected")
    failed(hamfast("config", "--preset", "nothing"), "preset: expected one of")
    failed(hamfast("config", tmp_path / "run.toml"), "written as YAML")
    failed(hamfast("config", "--root", ""), "--root: expected a folder")
    done(hamfast("config", tmp_path / "run.yaml", "--root", "1e3"))
    assert load_config(tmp_path / "run.yaml").data.root == "1e3"
    (tmp_path / "text").write_text("root:x:0\n")
    failed(hamfast("evaluate", tmp_path / "text", fixtures), "not a readable checkpoint")


def test_bands_and_states_have_one_zero(fixtures, hamfast, tmp_path, monkeypatch):
    """The DOS beside bands is drawn from the same Fermi level, given or counted on another mesh."""
    import hamfast.analysis.plot as plot

    seen = {}
    real = plot.plot_bands
    monkeypatch.setattr(
        plot, "plot_bands", lambda curves, *a, **k: seen.update(curves=curves, **k) or real(curves, *a, **k)
    )
    common = [
        "bands",
        fixtures / "graphene_1x1_000",
        "--kpath",
        "GK",
        "--points",
        2,
        "--dos",
        "--output",
        tmp_path / "b",
    ]
    done(hamfast(*common))
    assert seen["dos"]["DFT"].fermi_energy == seen["curves"]["DFT"].fermi_energy
    done(hamfast(*common, "--fermi", -2))
    assert seen["dos"]["DFT"].fermi_energy == -2


# --- numbers
# -------------------------------------------------------------------------------------------------


def test_bands_say_what_they_are(fixtures, hamfast, tmp_path):
    """Gap and Fermi level of h-BN; DFT's own Fermi level beside."""
    structure = shutil.copytree(fixtures / "hBN_1x1_000", tmp_path / "hBN")
    snapshot = read_snapshot(structure)
    h = snapshot.hamiltonian
    by_name("deeph").write_prediction(snapshot, type(h)(h.pairs, h.shapes, h.boundaries, h.entries * 1.001), structure)
    output = done(hamfast("bands", structure, "--kpath", "GKMG", "--points", 9, "--mesh", 3, 3, 1, "--dos"))
    content = json.loads((structure / "bands" / "bands.json").read_text())
    energies = np.array(content["DFT"]["energies"])
    gap = energies[:, 4].min() - energies[:, 3].max()
    assert content["DFT"]["gap"] == pytest.approx(gap)
    assert f"gap {gap:.3f} eV on the path" in output
    assert f"the DFT code's own E_F: {snapshot.fermi_energy:.4f} eV" in output
    assert "8 electrons on a 3x3x1 mesh" in output
    predicted = np.array(content["predicted"]["energies"])
    gap_error = 1e3 * (predicted[:, 4].min() - predicted[:, 3].max() - gap)
    assert f"gap {gap_error:+.1f}" in output
    assert content["errors_meV"]["gap_error"] == pytest.approx(gap_error)


def test_warnings_are_lines_on_stderr(fixtures, hamfast, tmp_path):
    structure = shutil.copytree(fixtures / "hBN_1x1_000", tmp_path / "hBN")
    lines = (structure / "POSCAR").read_text().splitlines()
    lines[5] = " ".join(reversed(lines[5].split()))
    (structure / "POSCAR").write_text("\n".join(lines) + "\n")
    status, output, errors = hamfast("bands", structure, "--kpath", "GK", "--points", 2, "--mesh", 1, 1, 1)
    assert status == 0
    assert errors.startswith(f"warning: {structure}: the lowest on-site level of N is")
    assert errors.endswith("are the two elements exchanged?\n")
    assert "warning:" not in output


# --- the program
# -------------------------------------------------------------------------------------------------


def test_an_error_of_ours_is_a_sentence_and_a_file(monkeypatch, fixtures, hamfast, tmp_path):
    def broken(root):
        raise KeyError("[red]x[/]")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("hamfast.data.summary.summarize", broken)
    status, _, errors = hamfast("data", "info", fixtures.parent)
    assert status == 1
    assert errors.count("\n") == 1
    assert "unexpected KeyError: '[red]x[/]'; this is a fault of hamfast, please report it" in errors
    (log,) = tmp_path.glob("hamfast-error-*.log")
    assert str(log) in errors
    assert "raise KeyError" in log.read_text()


@pytest.mark.parametrize(
    "error, words",
    cases(
        {
            "memory": (MemoryError(), "the memory of this machine does not suffice"),
            "permission": (PermissionError(13, "Permission denied", "/x[y]"), "/x[y]: Permission denied"),
            "recursion": (RecursionError("deep"), "unexpected RecursionError: deep"),
        }
    ),
)
def test_errors_of_the_machine(capsys, error, words):
    def command():
        raise error

    assert cli.run(command) == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["data", "info", "{root}"], ["data", "split", "{root}", "--fractions", "0.34", "0.33", "0.33"], ["config", "--root", "{root}"], ["--help"],
     ["bands", "{root}/dft/graphene_1x1_000", "--kpath", "GK", "--points", "2", "--mesh", "1", "1", "1"]],
    ids=lambda a: " ".join(a[:2]),
)  # fmt: skip
def test_commands_that_need_no_torch_do_not_load_it(tmp_path, fixtures, arguments):
    shutil.copytree(fixtures.parent, tmp_path / "set")
    shutil.rmtree(tmp_path / "set" / "dft" / "hBN_1x1_000")
    code = f"""
import sys
from hamfast.cli import main
try:
    main({[a.format(root=tmp_path / "set") for a in arguments]!r})
except SystemExit as end:
    assert not end.code, end.code
print(sorted({{'torch', 'e3nn', 'lightning'}} & set(sys.modules)))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-1] == "[]"


def test_a_closed_pipe_is_no_error(fixtures):
    command = f"{sys.executable} -m hamfast config | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=os.environ)
    assert done.stderr == ""
    assert done.stdout.startswith("# hamfast training configuration")
