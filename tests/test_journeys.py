"""Every command line of the README and of docs/, run as a user types it, in a folder with a space
and a bracket in its name."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import yaml
from ase.io import write as ase_write
from kit import deeph_e3_training

from hamfast.data import read_snapshot

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NATIVE = ROOT / "tests" / "data" / "native" / "openmx-graphene_1x1.tar.xz"
PLACEHOLDERS = {"DIR": "my set [1]", "LABEL": "graphene_1x1_000", "NAME": "my set [1]", "FOLDER": "a training"}
PLACEHOLDERS |= {"CALCULATIONS": "my calculations", "DATASET": "another set"}
SMALL = {"irreps_mid": "4x0e+2x1o+2x2e+1x3o+1x4e", "num_basis": 8, "embed_dim": 4, "num_blocks": 1}


def command_lines(page):
    """Lines of code blocks that begin with ``hamfast``, without their comments."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.M | re.S)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("hamfast ")]


def fill(line):
    for name, value in PLACEHOLDERS.items():
        line = re.sub(rf"\b{name}\b", lambda _, value=value: value, line)
    return line


def words_of(line):
    """As a shell splits them, names with spaces quoted as a user would."""
    return [fill(word) for word in shlex.split(line)]


def test_the_commands_of_all_pages_in_their_order(tmp_path, fixtures):
    """The README's first, then those of the other pages that are new; each once."""
    here = tmp_path / "my [work] folder"
    for label in ("graphene_1x1_000", "graphene_1x1_001"):
        shutil.copytree(fixtures / label, here / PLACEHOLDERS["DIR"] / "dft" / label)
    for n in range(4):
        shutil.copytree(fixtures / "graphene_1x1_000", here / PLACEHOLDERS["DIR"] / "dft" / f"copy {n}")
    deeph_e3_training("plain", here / PLACEHOLDERS["FOLDER"])
    with tarfile.open(NATIVE) as archive:
        archive.extractall(here / PLACEHOLDERS["CALCULATIONS"], filter="data")
    for name in ("new.cif", "sheet.cif"):
        ase_write(here / name, read_snapshot(fixtures / "graphene_1x1_000").atoms)
    environment = os.environ | {"COLUMNS": "80"}
    for line in dict.fromkeys(" ".join(line.split()) for page in PAGES for line in command_lines(page)):
        words = words_of(line)
        done = subprocess.run([sys.executable, "-m", *words], cwd=here, capture_output=True, text=True, env=environment)
        # The set of this test has copies of a structure, which is what the check is to find.
        expected = 1 if words[1:3] == ["data", "check"] else 0
        assert done.returncode == expected, (line, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        if words[1:3] == ["data", "import"]:  # of another code and basis: no part of this set
            shutil.rmtree(here / words[4] / "dft" / "graphene_1x1", ignore_errors="--packed" in words)
        if words[1] == "config" and (here / words[2]).exists():
            make_small(here / words[2])
        for path in re.findall(r"^(?:wrote|model:) (.+)$", done.stdout, re.M):
            assert (here / path).exists(), (line, done.stdout)
        if words[1] == "train":  # a terminal's width
            assert (
                max(len(text) for text in done.stdout.splitlines() if not text.startswith(("model:", "structures")))
                <= 80
            )


def make_small(path):
    """The configuration that the command wrote, with a network and a training for a test."""
    config = yaml.safe_load(path.read_text())
    config["stage1"] |= SMALL
    config["stage2"] |= {"hidden": 8, "num_blocks": 1}
    for phase in ("stage1", "stage2"):
        config["training"][phase]["epochs"] = 2
    path.write_text(yaml.safe_dump(config))


def test_there_are_journeys():
    assert {"README.md", "training.md", "evaluation.md"} <= {page.name for page in PAGES if command_lines(page)}
