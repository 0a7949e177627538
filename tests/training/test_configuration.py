"""Configurations: what is refused and how, what a template holds, and a search through everything a
user may write."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import ase.io
import pytest
import yaml
from ase.neighborlist import neighbor_list
from hypothesis import HealthCheck, given, note
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from kit import cases

from hamfast.configs import preset_names, preset_text
from hamfast.data.summary import suggest, suggestions, summarize
from hamfast.errors import HamfastError
from hamfast.setting_types import parse_irreps
from hamfast.training.config import Config, config_template, fields_of, load_config, parse_config, section_of

MINIMAL = "output: o\ndata: {root: r}\n"
NUMBER = r"\b(int|float)\b"


def written(tmp_path, content, name="config.yaml"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_the_configuration_needs_no_torch():
    code = (
        "import sys, hamfast.training.config, hamfast.configs; print({'torch', 'e3nn', 'lightning'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    cases(
        {
            "key-twice": ("output: o\nseed: 1\ndata: {root: r}\nseed: 2\n", "line 4: .*the key `seed` is given twice, first in line 2"),
            "nested-key-twice": (MINIMAL + "training:\n  stage1:\n    epochs: 3\n    epochs: 4\n", "line 6: .*`epochs` is given twice, first in line 5"),
            "key-twice-in-braces": ("output: o\ndata: {root: r, root: s}\n", "line 2: .*`root` is given twice"),
            "empty": ("", "expected sections like data: and training:, found an empty file"),
            "list": ("- a\n- b\n", "expected sections like data: and training:, found a list"),
            "unclosed": ("output: [\n", r"line 2: not readable as YAML"),
            "impossible-date": (MINIMAL + "seed: 2020-13-45\n", "not readable as YAML: month must be in"),
            "number-too-long": (MINIMAL + f"seed: {'9' * 5000}\n", "not readable as YAML: Exceeds the limit"),
            "nested-too-deep": (MINIMAL + "seed: " + "[" * 3000 + "]" * 3000, "not readable as YAML"),
            "python-object": (MINIMAL + "seed: !!python/object/apply:os.getpid []\n", "line 3: not readable as YAML: could not determine"),
            "latin-1": ((MINIMAL + "# größe").encode("latin-1"), "expected text in UTF-8, found other bytes at position"),
            "utf-16": (MINIMAL.encode("utf-16"), "expected text in UTF-8, found other bytes at position 0"),
            "bytes": (bytes(range(256)), "expected text in UTF-8"),
        }
    ),
)  # fmt: skip
def test_files_that_are_no_configuration(tmp_path, content, message):
    with pytest.raises(HamfastError, match=f"config.yaml.*{message}") as error:
        load_config(written(tmp_path, content))
    assert "\n" not in str(error.value)


def test_toml_says_the_same(tmp_path):
    path = written(tmp_path, 'output = "o"\n[data]\nroot = "r"\nroot = "s"\n', "c.toml")
    with pytest.raises(HamfastError, match=r'c.toml: not readable as TOML: .*line 4.*root = "s"'):
        load_config(path)
    for value, message in (
        ("nan", "seed: .*finite.*nan"),
        ("true", "seed: expected a number, found true"),
        ("inf", "finite"),
    ):
        path = written(tmp_path, f'output = "o"\nseed = {value}\n[data]\nroot = "r"\n', "c.toml")
        with pytest.raises(HamfastError, match=message):
            load_config(path)


def test_other_files(tmp_path):
    with pytest.raises(HamfastError, match="expected a file, found a folder"):
        load_config(tmp_path)
    with pytest.raises(HamfastError, match="file not found"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(HamfastError, match=r"expected a file that ends in .yaml, .yml, .toml, found '.txt'"):
        load_config(written(tmp_path, MINIMAL, "c.txt"))
    assert load_config(written(tmp_path, b"\xef\xbb\xbf" + MINIMAL.encode())).output == "o"  # a byte order mark


@pytest.mark.parametrize("bad", [".nan", ".inf", "-.inf", "1e400"])
def test_every_number_must_be_finite(tmp_path, bad):
    tried = 0
    for key, field in keys(Config):
        if re.search(NUMBER, str(field.annotation)):
            with pytest.raises(HamfastError, match=rf"{re.escape(key)}: .*(finite|number|integer)"):
                load_config(written(tmp_path, changed(key, bad)))
            tried += 1
    assert tried > 40


def test_truth_and_numbers_are_not_mixed(tmp_path):
    for key, field in keys(Config):
        text = str(field.annotation)
        if "bool" in text:
            for bad in ("1", "0", "1.0", "'true'", "null"):
                with pytest.raises(HamfastError, match=rf"{re.escape(key)}: .*expected true or false, found"):
                    load_config(written(tmp_path, changed(key, bad)))
        elif re.search(NUMBER, text):
            with pytest.raises(HamfastError, match=rf"{re.escape(key)}: .*expected a number, found true"):
                load_config(written(tmp_path, changed(key, "true")))


def test_numbers_as_people_write_them(tmp_path):
    path = written(tmp_path, MINIMAL + "training: {stage1: {learning_rate: 1e-3, clip: 5e+1, weight_decay: 2E-5}}\n")
    stage1 = load_config(path).training.stage1
    assert (stage1.learning_rate, stage1.clip, stage1.weight_decay) == (1e-3, 50.0, 2e-5)


@pytest.mark.parametrize(
    "text",
    cases(
        {
            "usual": "64x0e+32x1o",
            "without-multiplicity": "0e",
            "spaces": " 3x0e + 2x1o",
            "zero-of-one-irrep": "0x1o+2x0e",
            "not-sorted": "2x0o+1x0e",
            "high-l": "12x0e+1x11e",
        }
    ),
)
def test_irreps_are_read_as_e3nn_reads_them(text):
    from e3nn.o3 import Irreps

    assert parse_irreps(text) == [(mul, ir.l, ir.p) for mul, ir in Irreps(text)]


@pytest.mark.parametrize(
    "text",
    cases(
        {
            "empty": "",
            "wrong-letter": "64y0e",
            "no-multiplicity": "x0e",
            "no-l": "2x",
            "ends-with-plus": "2x0e+",
            "negative": "-1x0e",
            "no-plus": "2x0e 1o",
            "fraction": "1.5x0e",
            "comma": "2x0e,1o",
            "l-too-high": "1x12e",
            "superscript": "²x0e",
        }
    ),
)
def test_irreps_that_are_none(text):
    with pytest.raises(ValueError, match="not irreps like|expected l up to 11"):
        parse_irreps(text)


# --- templates
# -------------------------------------------------------------------------------------------------


def test_suggestions_by_hand():
    """s, p, d shells couple up to l = 4; with spin to 5; two f shells to 6."""
    assert suggest([[0, 0, 1, 1, 2]], False, 7.96, None) == {
        "stage1": {"irreps_mid": "64x0e+32x1o+16x2e+8x3o+8x4e", "l_max": 4, "cutoff": 8.0, "edge_basis_stop": 8.0},
        "stage2": {"l_max": 4, "cutoff": 8.0},
    }
    assert suggest([[0, 1, 2], [0]], True, 5.0, None)["stage1"]["irreps_mid"].endswith("+8x4e+4x5o")
    assert suggest([[0], [0, 3]], False, 5.0, None)["stage1"]["l_max"] == 6
    assert suggest([[0]], False, 5.0, None)["stage1"]["l_max"] == 4
    local = suggest([[0, 0, 1, 1, 2]], False, 7.96, 3.6)
    irreps = "32x0e+16x1o+16x2e+8x3o+8x4e"
    assert local["target"] == {"shift": "environment", "environment": 3.6}
    expected = {"irreps_mid": irreps, "l_max": 4, "cutoff": 8.0, "edge_basis_stop": 8.0, "num_blocks": 1}
    assert local["stage1"].items() >= expected.items() and local["stage2"]["irreps"] == irreps
    assert local["stage1"]["environment"] == local["stage2"]["environment"] == 3.6


def test_suggestions_are_the_settings_that_won():
    """Those of bench/accuracy/joint.yaml, but for the second round, which sees too far."""
    won = load_config(Path(__file__).parents[2] / "bench" / "accuracy" / "joint.yaml").model_dump()
    won["stage1"]["num_blocks"] = 1
    won["training"]["stage1"].pop("epochs")
    text = config_template("x", suggestions=suggest([[0, 0, 1, 1, 2]], False, 7.96, 3.6))
    ours = parse_config(yaml.safe_load(text), "test").model_dump()
    for section in ("target", "stage1", "stage2"):
        assert ours[section] == won[section]
    for key in ("joint", "stage2_rate", "freeze_stage1"):
        assert ours["training"][key] == won["training"][key]
    assert ours["training"]["stage1"].items() >= won["training"]["stage1"].items()


def test_the_template_takes_what_the_data_suggest(graphene, tmp_path):
    """Its matrices reach to 8 angstrom."""
    found = suggestions(graphene)
    text = config_template(str(graphene), suggestions=found.settings)
    config = parse_config(yaml.safe_load(text), "test")
    assert (config.stage1.l_max, config.stage1.cutoff, config.stage2.cutoff) == (4, 8.0, 8.0)
    assert config.output == "runs/graphene"
    assert text.count("[suggested]\n") == 28
    # The example's own radius, for its training cells of 3 x 3.
    example = load_config(graphene / "config.yaml")
    for ours, theirs in ((config.target, example.target), (config.stage2, example.stage2)):
        assert ours.environment == theirs.environment
    assert config.target.shift == "environment" and config.stage2.num_blocks == 1
    shown = summarize(graphene)["suggested stage1"]
    assert shown == f"irreps_mid: {config.stage1.irreps_mid}, l_max: 4, cutoff: 8.0"
    assert summarize(graphene)["suggested environment"] == (
        "3.6 A, for target, stage1 and stage2; half of the smallest training cell is 3.7 A"
    )
    with pytest.raises(HamfastError, match="no structure folders found"):
        suggestions(tmp_path)
    assert "[suggested]" not in config_template(str(tmp_path), suggestions=None)


def test_small_cells_suggest_no_environment(settings, hamfast, tmp_path, fixtures):
    """1 x 1 cells of graphene: half of one is shorter than a bond."""
    root = Path(settings["data"]["root"])
    status, output, _ = hamfast("data", "info", root)
    nearest = 0.0
    for name in ("graphene_1x1_000", "graphene_1x1_001"):
        i, d = neighbor_list("id", ase.io.read(fixtures / name / "POSCAR"), 3.0)
        nearest = max(nearest, *(d[i == atom].min() for atom in range(2)))
    sentence = (
        f"none, since half of the smallest training cell, 1.2 A, is less than 1.4 times the distance of the nearest neighbours, {nearest:.1f} A; "
        "predict cells of this size alone, or train on larger ones"
    )
    assert status == 0 and f"suggested environment: {sentence}" in output
    assert hamfast("config", "--root", root, tmp_path / "c.yaml")[0] == 0
    lines = (tmp_path / "c.yaml").read_text().splitlines()
    assert f"Suggested environment: {sentence}" in " ".join(line.removeprefix("# ") for line in lines)
    config = load_config(tmp_path / "c.yaml")
    assert config.stage1.environment is None and config.target.shift == "radial" and config.stage1.num_blocks == 3


def test_the_smallest_cell_that_trains_counts(tmp_path, graphene):
    """Without a split all do."""
    for label in ("3x3_000", "4x4_000"):
        shutil.copytree(graphene / "dft" / label, tmp_path / "dft" / label)
    assert suggestions(tmp_path).settings["stage1"]["environment"] == 3.6
    split = {"train": ["4x4_000"], "validate": ["3x3_000"]}
    (tmp_path / "dataset_split.json").write_text(json.dumps(split))
    assert suggestions(tmp_path).settings["stage1"]["environment"] == 4.8


@pytest.mark.parametrize(
    "root",
    cases(
        {
            "colon": "a: b",
            "brackets": "[relaxed]",
            "hash": "a #b",
            "quotes": "'q' \"d\"",
            "umlauts": "ä ö",
            "dash": "- x",
            "null": "null",
            "number": "1e3",
            "star": "*a",
        }
    ),
)
def test_any_name_of_a_folder_can_be_filled_in(root):
    assert parse_config(yaml.safe_load(config_template(root)), "test").data.root == root
    for name in preset_names():
        assert parse_config(yaml.safe_load(preset_text(name, root)), "test").data.root == root


# --- a search
# -------------------------------------------------------------------------------------------------


def keys(model, prefix=""):
    """Every key with its field: ``training.stage1.epochs``."""
    for name, field in fields_of(model).items():
        section = section_of(field.annotation)
        if section is None:
            yield prefix + name, field
        else:
            yield from keys(section, f"{prefix}{name}.")


def changed(key, value, base=None):
    """The text of a configuration with the text ``value`` at ``key``; None: without it."""
    content = parse_config({"output": "o", "data": {"root": "r"}} if base is None else base, "base").model_dump()
    *path, last = key.split(".")
    section = content
    for name in path:
        section = section.setdefault(name, {})
    if value is None:
        section.pop(last, None)
    else:
        section[last] = "@VALUE@"
    return yaml.safe_dump(content, sort_keys=False).replace("'@VALUE@'", value or "").replace("@VALUE@", value or "")


KEYS = [key for key, _ in keys(Config)]
VALUES = [
    "", "null", "true", "false", "yes", "0", "1", "-1", "3.5", ".nan", ".inf", "-.inf", "1e400", "1e308", "1e-320", "1" + "0" * 30,
    "9" * 5000, "0x1F", "1_000", "''", "' '", "abc", "'1'", "'nan'", "[]", "[1, 2]", "{}", "{a: b}", "{a: {b: [c]}}", "2020-01-01",
    "2020-13-45", "2020-01-01T00:00:00Z", "!!binary aGVsbG8=", "!!python/none ~", "*unknown", "&a [*a]", "[" * 2000, '"\\0"', '"\\n"',
    '"a\\u0007b"', '"\\U0001F600"', "'[relaxed]'", "'a[/b]'", "'" + "x" * 300 + "'", "'" + "y/" * 3000 + "'", "\x01", "\ud800", "|\n  a\n  b",
    "0e", "64x0e+32x1o", "1x0e+1x99e", "99999999999x0e", "../..", "/", "/dev/null", "/proc/self/nothing", "cosine", "mae", "radial", "float64",
]  # fmt: skip
MUTATIONS = st.one_of(
    st.tuples(st.just("value"), st.sampled_from(KEYS), st.sampled_from(VALUES)),
    st.tuples(st.just("value"), st.sampled_from(KEYS), st.integers().map(str) | st.floats().map(repr)),
    st.tuples(st.just("value"), st.sampled_from(KEYS), st.text(max_size=20)),
    st.tuples(st.just("drop"), st.sampled_from(KEYS), st.none()),
    st.tuples(st.just("unknown"), st.sampled_from(KEYS), st.sampled_from(["x", "0", "[b]", "ä", "null", "<<"])),
    st.tuples(st.just("twice"), st.integers(0, 80), st.none()),
    st.tuples(st.just("encoding"), st.none(), st.sampled_from(["utf-16", "utf-16-le", "utf-32", "utf-8-sig", "cp037"])),
    st.tuples(st.just("cut"), st.integers(0, 4000), st.none()),
    st.tuples(st.just("insert"), st.integers(0, 4000), st.binary(min_size=1, max_size=6)),
    st.tuples(st.just("toml"), st.sampled_from(KEYS), st.sampled_from(["nan", "inf", "true", '""', "[]", "{}", "1979-05-27", "9e999"])),
)  # fmt: skip


def mutated(base, change, where, value):
    """(name of the file, its bytes)"""
    if change == "value":
        return "c.yaml", changed(where, value, base).encode("utf-8", "surrogatepass")
    if change == "drop":
        return "c.yaml", changed(where, None, base).encode()
    if change == "unknown":
        prefix = where.rpartition(".")[0]
        return "c.yaml", changed(f"{prefix}.{value}" if prefix else value, "1", base).encode()
    if change == "toml":
        name, _, last = where.rpartition(".")
        own = "" if name else f"{last} = {value}\n"
        section = f"[{name}]\n{last} = {value}\n" if name else ""
        return "c.toml", f'output = "o"\n{own}[data]\nroot = "r"\n{section}'.encode()
    text = changed("seed", "0", base)
    if change == "twice":
        lines = text.splitlines()
        lines.insert(where, lines[where % len(lines)])
        return "c.yaml", "\n".join(lines).encode()
    if change == "encoding":
        return "c.yaml", text.encode(value)
    data = text.encode()
    return "c.yaml", data[:where] if change == "cut" else data[:where] + value + data[where:]


def files(folder):
    """All but the store of prepared data, which is a cache: what is there is no loss."""
    return {
        p: p.read_bytes() for p in Path(folder).rglob("*") if p.is_file() and not p.name.startswith("prepared.sqlite")
    }


def stop(*_):
    raise HamfastError("stopped where the training would begin")


def _begin(folder, path):
    """All of a run but its training."""
    from hamfast.training import Run

    config = load_config(path)
    assert isinstance(config, Config)
    run = Run(config.model_copy(update={"output": str(folder / "run")}))
    run.console = None
    run._initial_model = lambda: (SimpleNamespace(named_children=list), None)
    run._run_phases = stop
    run.train()
    raise AssertionError("the run is made to stop")


def search(folder, base, mutation):
    """Success, or one sentence with every file as it was."""
    name, data = mutated(base, *mutation)
    path = folder / name
    path.write_bytes(data)
    before = files(folder)
    try:
        with contextlib.chdir(folder):  # a value may be the name of a folder
            _begin(folder, path)
    except HamfastError as error:
        sentence = str(error)
    assert sentence
    assert "\n" not in sentence
    assert len(sentence) < 2000
    assert files(folder) == before
    path.unlink()


def searched(examples):
    @hypothesis_settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(mutation=MUTATIONS)
    def test(tmp_path, settings, mutation):
        note(str(mutated(settings, *mutation)))
        search(tmp_path, settings, mutation)

    return test


test_what_a_user_may_write = searched(120)
test_what_a_user_may_write_at_length = pytest.mark.long(searched(5_000))


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.long
def test_every_key_with_every_value(tmp_path, settings, key):
    for value in VALUES:
        search(tmp_path, settings, ("value", key, value))
