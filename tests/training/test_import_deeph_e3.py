"""Models of DeepH-E3: imported, they predict what the published network predicts."""

import json
import os
import pickle

import h5py
import numpy as np
import pytest
import torch
from kit import deeph_e3_training, random_snapshot

from hamfast.data import by_name, read_snapshot
from hamfast.errors import HamfastError
from hamfast.graph import CrystalGraph
from hamfast.plan.coupling import wigner_3j
from hamfast.targets import TargetSpec
from hamfast.training import load_config, load_model
from hamfast.training.deeph_e3_files import target_blocks
from hamfast.training.import_deeph_e3 import import_deeph_e3
from hamfast.training.older_e3nn import OTHER_SIGN

CASES = {
    "plain": ("0.5 or later", 1e-13),
    "soc": ("0.5 or later", 1e-13),
    "soc_e3nn_0.3.5": ("0.3.5", 1e-6),
    "plain_e3nn_0.4.4": ("0.4.2 to 0.4.4", 3e-6),
}
"""The e3nn, and a relative error; 0.3.5 itself rounds to single precision; the last is in it."""


@pytest.fixture
def training(tmp_path):
    return lambda name: deeph_e3_training(name, tmp_path / "a [training]")


def graph_of(expected):
    pairs = torch.tensor(expected["pairs"])
    place = {tuple(pair): n for n, pair in enumerate(pairs.tolist())}
    reverse = torch.tensor([place[-a, -b, -c, j, i] for a, b, c, i, j in pairs.tolist()])
    species = torch.tensor(expected["species"])
    zeros = [torch.zeros(n, dtype=torch.int64) for n in (len(species), len(pairs))]
    return CrystalGraph(
        species, pairs[:, 3], pairs[:, 4], pairs[:, :3], torch.tensor(expected["vectors"]), reverse, *zeros
    )


def blocks(spec, graph, irreps):
    species = graph.species.tolist()
    ends = zip(graph.i.tolist(), graph.j.tolist(), strict=True)
    return torch.cat(
        [spec.to_blocks(irreps[n : n + 1], species[i], species[j]).flatten() for n, (i, j) in enumerate(ends)]
    )


@pytest.mark.parametrize("name", CASES)
def test_predicts_what_the_published_network_predicts(name, training):
    folder = training(name)
    imported = import_deeph_e3(folder)
    version, tolerance = CASES[name]
    assert imported.e3nn_version == version
    loaded = load_model(imported.output)
    expected = np.load(folder / "expected.npz")
    graph = graph_of(expected)
    found = blocks(loaded.spec, graph, loaded.model(graph).refined)
    truth = torch.tensor(expected["blocks"])
    assert found.dtype == truth.dtype
    assert float((found - truth).norm() / truth.norm()) < tolerance


def test_configuration_is_the_published_one(training):
    loaded = load_model(import_deeph_e3(training("soc")).output)
    config = loaded.config
    assert (config.target.shift, config.target.scale, config.target.hermitian) == ("none", "none", False)
    assert (config.training.stage1.loss, config.training.stage1.ema, config.stage2) == ("mse", None, None)
    assert (config.precision, config.stage1.cutoff, config.stage1.l_max, config.stage1.num_basis) == (
        "float64",
        5,
        3,
        6,
    )
    assert loaded.pair_cutoffs is None
    assert str(loaded.model.stage1.node_updates[-1].irreps_out) == "4x0e+3x1o+2x2e+2x3o+3x1e"


def test_symbols_with_another_sign_are_odd():
    """So that no product of irreps of parity (-1)^l has one: the sign is a matter of conventions
    alone."""
    for ls in OTHER_SIGN:
        assert sum(ls) % 2 == 1
        assert ls == tuple(sorted(ls))
        assert np.isclose(np.square(wigner_3j(*ls)).sum(), 1)


def test_targets_as_listed_in_the_published_configuration():
    spec = TargetSpec.from_mapping({42: [0, 0, 0, 1, 1, 2, 2], 16: [0, 0, 1, 1, 2]}, False)
    blocks = target_blocks(spec)
    assert {"42 42": [3, 5], "42 16": [3, 4], "16 42": [2, 5], "16 16": [2, 4]} in blocks
    assert len(blocks) == 49


@pytest.mark.parametrize("part", ["hamiltonian", "overlap"])
def test_the_commands_take_it(training, hamfast, tmp_path, part):
    folder = training("soc")
    status, output, errors = hamfast("import-checkpoint", "deeph-e3", folder, "--output", tmp_path / "model.ckpt")
    assert status == 0, errors
    assert "83 [1], 34 [1, 2]; with spin-orbit coupling" in output
    assert "weights in float64 at epoch 41, trained with e3nn 0.5 or later" in output
    structure = tmp_path / "set" / "dft" / "one"
    by_name("deeph").write(random_snapshot({83: (1,), 34: (1, 2)}, [83, 34], True), structure)
    if part == "overlap":
        (structure / "hamiltonian.h5").unlink()
    status, _, errors = hamfast("predict", tmp_path / "model.ckpt", structure)
    assert status == 0, errors
    with h5py.File(structure / "hamiltonian_pred.h5") as predicted:  # random weights: not Hermitian
        assert len(predicted["atom_pairs"]) == len(read_snapshot(structure).overlap)
    if part == "hamiltonian":
        status, _, errors = hamfast("evaluate", tmp_path / "model.ckpt", structure, "--no-eigenvalues")
        assert status == 0, errors
        assert (tmp_path / "evaluation.json").exists()


# --- what is refused
# -------------------------------------------------------------------------------------------------


def edit(name, old, new):
    def change(folder):
        path = folder / "src" / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return change


def add_to_network(line):
    return edit("train.ini", "num_blocks = 2", f"num_blocks = 2\n{line}")


def edit_state(change):
    def apply(folder):
        path = folder / "best_model.pkl"
        content = torch.load(path, weights_only=True)
        change(content["state_dict"])
        torch.save(content, path)

    return apply


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


class Evil:
    def __reduce__(self):
        return os.system, ("touch run_by_a_pickle",)


def source_of(default):
    def change(folder):
        package = folder / "src" / "deephe3_1"
        package.mkdir()
        (package / "e3modules.py").write_text(
            f"class e3LayerNorm:\n    def __init__(self, irreps_in, eps=1e-5, divide_norm={default}):\n        pass\n"
        )

    return change


REFUSED = {
    "no weights": (lambda f: (f / "best_model.pkl").unlink(), "best_model.pkl: file not found"),
    "no settings": (lambda f: (f / "src" / "train.ini").unlink(), "train.ini: file not found"),
    "no INI file": (write("src/train.ini", b"irreps"), "not a readable INI file"),
    "number": (edit("train.ini", "cutoff_radius = 5.0", "cutoff_radius = far"), "expected angstrom, found 'far'"),
    "range": (edit("train.ini", "cutoff_radius = 5.0", "cutoff_radius = 6.0"), "up to cutoff_radius = 6.0"),
    "irreps": (edit("train.ini", "4x0e+3x1o", "4x0+3x1o"), "irreps_mid_node: expected irreps"),
    "limits": (edit("train.ini", "num_blocks = 2", "num_blocks = 0"), "stage1.num_blocks"),
    "parity": (add_to_network("ignore_parity = True"), "network.ignore_parity: expected False, found 'True'"),
    "spherical basis": (add_to_network("spherical_basis_irreps = 1x0e+1x1o"), "spherical_basis_irreps: expected none"),
    "two widths": (add_to_network("irreps_mid_edge = 4x0e"), "network.irreps_mid_edge: expected 4x0e+3x1o"),
    "own irreps": (add_to_network("irreps_post_node = 9x0e"), "network.irreps_post_node: expected none"),
    "other targets": (edit("target_blocks.json", "[0, 1]", "[0, 0]"), "target_blocks_type = all"),
    "no JSON": (write("src/target_blocks.json", b"[{"), "target_blocks.json: not valid JSON"),
    "elements": (edit("dataset_info.json", "[83, 34]", "[83, 340]"), "index_to_Z: expected a list of atomic numbers"),
    "shells": (edit("dataset_info.json", "[[1], ", "["), "orbital_types: expected a list for each"),
    "layer norm": (source_of("True"), "expected divide_norm=False"),
    "other settings": (edit("train.ini", "lmax = 3", "lmax = 2"), "weights1.0: expected a parameter of shape [4, 9]"),
    "fewer channels": (edit("train.ini", "4x0e+3x1o", "4x0e+2x1o"), "expected a parameter of shape"),
    "missing": (edit_state(lambda s: s.pop("lin_edge.bias")), "lin_edge.bias: expected a parameter of shape"),
    "left over": (edit_state(lambda s: s.update({"self_tp.weight": torch.ones(2)})), "1 more, as self_tp.weight"),
    "not numbers": (edit_state(lambda s: s["lin_edge.weight"].fill_(torch.nan)), "are NaN"),
    "no tables": (
        edit_state(lambda s: [s.pop(k) for k in list(s) if "_w3j_" in k]), "expected the tables of one e3nn",
    ),
    "two signs": (
        edit_state(lambda s: next(v for k, v in s.items() if k.endswith("_w3j_1_2_2")).neg_()), "contradictory",
    ),
    "truncated": (lambda f: os.truncate(f / "best_model.pkl", 9000), "perhaps truncated"),
    "another pickle": (write("best_model.pkl", pickle.dumps([1, 2])), "best_model.pkl: expected tensors"),
    "a list": (lambda f: torch.save([1], f / "best_model.pkl"), "expected a state_dict of named tensors, found 'list'"),
    "a module": (lambda f: torch.save(torch.nn.Linear(2, 2), f / "best_model.pkl"), "torch.nn.modules.linear.Linear"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_one_sentence_and_no_checkpoint(case, training, hamfast):
    folder = training("soc")
    change, words = REFUSED[case]
    change(folder)
    before = sorted(folder.iterdir())
    status, _, errors = hamfast("import-checkpoint", "deeph-e3", folder)
    assert status == 1
    assert errors.startswith("error: ")
    assert str(folder) in errors
    assert words in errors
    assert errors.count("\n") == 1
    assert "fault of hamfast" not in errors
    assert sorted(folder.iterdir()) == before


def test_a_pickle_is_not_run(training, tmp_path, monkeypatch):
    folder = training("plain")
    monkeypatch.chdir(tmp_path)
    for content in ({"state_dict": {}, "extra": Evil()}, Evil()):
        torch.save(content, folder / "best_model.pkl")
        with pytest.raises(HamfastError, match=r"best_model.pkl: .* found posix.system, which was not run"):
            import_deeph_e3(folder)
        (folder / "best_model.pkl").write_bytes(pickle.dumps(content))
        with pytest.raises(HamfastError, match="best_model.pkl: "):
            import_deeph_e3(folder)
    assert not (tmp_path / "run_by_a_pickle").exists()


def test_numbers_of_numpy_are_no_obstacle(training):
    folder = training("plain")
    content = torch.load(folder / "best_model.pkl", weights_only=True)
    content |= {"val_loss": np.float64(3e-6), "epoch": 7}
    torch.save(content, folder / "best_model.pkl")
    assert import_deeph_e3(folder).epoch == 7


def test_nothing_is_written_over(training, hamfast):
    folder = training("plain")
    assert hamfast("import-checkpoint", "deeph-e3", folder)[0] == 0
    status, _, errors = hamfast("import-checkpoint", "deeph-e3", folder)
    assert status == 1
    assert "model.ckpt: exists already" in errors
    assert "expected deeph-e3, found 'hamgnn'" in hamfast("import-checkpoint", "hamgnn", folder)[2]
    assert "expected a folder" in hamfast("import-checkpoint", "deeph-e3", folder / "nowhere")[2]


def test_settings_that_are_not_written_have_the_published_defaults(training):
    folder = training("plain")
    ini = folder / "src" / "train.ini"
    ini.write_text("[basic]\n")
    with pytest.raises(HamfastError, match="cutoff_radius = 7.2"):
        import_deeph_e3(folder)
    ini.write_text("[network]\nirreps_mid = 4x0e+3x1o+2x2e+2x3o\nspherical_harmonics_lmax = 3\nirreps_embed = 4x0e\n"
                   "cutoff_radius = 5\n")  # fmt: skip
    with pytest.raises(HamfastError, match=r"node_update_blocks\.2.* expected a parameter"):  # three blocks
        import_deeph_e3(folder)


def test_a_new_training_starts_from_it(training, hamfast, tmp_path):
    folder = training("soc")
    imported = import_deeph_e3(folder)
    root = tmp_path / "set"
    for n in range(2):
        by_name("deeph").write(random_snapshot({83: (1,), 34: (1, 2)}, [83, 34], True, seed=n), root / "dft" / str(n))
    (root / "dataset_split.json").write_text(json.dumps({"train": ["0"], "validate": ["1"], "test": []}))
    config = imported.config.model_dump()
    config |= {"output": str(tmp_path / "run"), "data": {"root": str(root)}}
    config["training"] |= {"init_from": str(imported.output)}
    config["training"]["stage1"] |= {"epochs": 1}
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    assert load_config(tmp_path / "run.yaml").stage1 == imported.config.stage1
    status, _, errors = hamfast("train", tmp_path / "run.yaml")
    assert status == 0, errors
