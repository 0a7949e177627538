"""A tiny run on 1x1 cells."""

import json
import os

import pytest


@pytest.fixture
def settings(tmp_path, fixtures):
    """A tiny run on 1x1 cells."""
    root = tmp_path / "set"
    (root / "dft").mkdir(parents=True)
    for folder in ("graphene_1x1_000", "graphene_1x1_001"):
        for copy in "ab":
            os.symlink(fixtures / folder, root / "dft" / f"{folder}{copy}")
    split = {
        "train": ["graphene_1x1_000a", "graphene_1x1_001a"],
        "validate": ["graphene_1x1_000b"],
        "test": ["graphene_1x1_001b"],
    }
    (root / "dataset_split.json").write_text(json.dumps(split))
    phase = {"epochs": 4, "learning_rate": 5e-3, "warmup_steps": 2}
    return {
        "output": str(tmp_path / "run"),
        "threads": 1,  # more would wait for each other in matrices of this size
        "data": {"root": str(root), "cache": str(tmp_path / "cache")},
        "stage1": {
            "irreps_mid": "4x0e+2x1o+2x2e+1x3o+1x4e",
            "num_basis": 8,
            "radial_hidden": 8,
            "embed_dim": 4,
            "num_blocks": 2,
        },
        "stage2": {"hidden": 8, "num_blocks": 1, "num_heads": 2, "num_basis": 4},
        "training": {"stage1": dict(phase), "stage2": dict(phase, rotate=0.0, rotate_angle=0.5)},
    }
