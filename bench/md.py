"""Molecular dynamics with ASE's calculators of other packages: is energy conserved as before?

    python bench/md.py --machine "2 CPU cores"         # all, some 10 minutes
    python bench/md.py --machine "2 CPU cores" --only mace --steps 100

Writes bench/results/md.csv. The networks are those of tests/drop_in, with random weights; the cell
is 8 atoms of rattled silicon carbide. Velocity Verlet at constant energy, from the same velocities
for the model as it is and after ``hamfast.accelerate``. A drift is the largest difference of the
total energy from that of the first step; the exchanged energy is the range of the potential energy,
which is what there was to conserve. Times are CPU time of one thread, without the first steps.
"""

import argparse
import copy
import csv
import datetime
import importlib
import subprocess
import sys
import time
import warnings
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
RESULT = HERE / "results" / "md.csv"
sys.path.insert(0, str(HERE.parent / "tests" / "drop_in"))

import peers  # noqa: E402

CALCULATORS = {
    "MACE": ("mace_network", "mace-torch"),
    "NequIP": ("nequip_network", "nequip"),
    "Allegro": ("allegro_network", "nequip-allegro"),
}
"""Name -> module in tests/drop_in, distribution. Allegro's calculator is NequIP's."""
DTYPES = {"float64": torch.float64, "float32": torch.float32}
TIME_STEP = 0.5  # fs
TEMPERATURE = 300.0  # K
COLUMNS = [
    "calculator", "version", "dtype", "atoms", "steps", "time_step_fs", "exchanged_energy_mev_per_atom",
    "as_it_is_drift_mev_per_atom", "accelerated_drift_mev_per_atom", "largest_distance_at_step_100_angstrom",
    "as_it_is_ms", "accelerated_ms", "layers_exchanged", "machine", "torch", "date",
]  # fmt: skip


def calculator_of(name, model):
    """ASE's calculator around a model, as its package makes it."""
    if name == "MACE":
        from mace.calculators import MACECalculator

        dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        return MACECalculator(models=model, default_dtype=dtype)
    from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
    from nequip.integrations.ase import NequIPCalculator

    species = ["C", "Si"]
    transforms = [ChemicalSpeciesToAtomTypeMapper(species), NeighborListTransform(r_max=4.5)]
    return NequIPCalculator(model.eval(), "cpu", transforms=transforms)


def trajectory(calculator, steps):
    """Total and potential energies (eV), positions at step 100, and ms a step."""
    from ase import units
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
    from ase.md.verlet import VelocityVerlet

    atoms = peers.crystal((1, 1, 1))
    atoms.calc = calculator
    MaxwellBoltzmannDistribution(atoms, temperature_K=TEMPERATURE, rng=np.random.default_rng(0))
    dynamics = VelocityVerlet(atoms, TIME_STEP * units.fs)
    energies, positions, begin = [], atoms.positions.copy(), 0.0
    for step in range(steps + 1):
        if step:
            dynamics.run(1)
        energies.append((atoms.get_total_energy(), atoms.get_potential_energy()))
        if step == min(100, steps):
            positions = atoms.positions.copy()
        if step == min(10, steps - 1):
            begin = time.process_time()
    return *np.array(energies).T, positions, 1e3 * (time.process_time() - begin) / max(steps - 10, 1)


def measure(name, dtype, steps):
    """One row of the table, without versions and dates."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    module = importlib.import_module(CALCULATORS[name][0])
    import hamfast

    models = [module.network(DTYPES[dtype])]
    models.append(copy.deepcopy(models[0]))
    report = hamfast.accelerate(models[1])
    found = [trajectory(calculator_of(name, model), steps) for model in models]
    atoms = len(peers.crystal((1, 1, 1)))
    drifts = [1e3 * float(np.abs(energies - energies[0]).max()) / atoms for energies, *_ in found]
    apart = float(np.abs(found[0][2] - found[1][2]).max())
    return [
        atoms, steps, TIME_STEP, f"{1e3 * np.ptp(found[1][1]) / atoms:.2f}", *(f"{d:.4f}" for d in drifts), f"{apart:.1e}",
        *(f"{ms:.1f}" for *_, ms in found), report.exchanged,
    ]  # fmt: skip


def main():
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machine", help="what runs it, in words")
    parser.add_argument("--only", default="", help="calculators whose name contains it")
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(",".join(map(str, measure(*options.one, options.steps))))
        return
    peers.use()
    kept = {}
    if RESULT.exists():
        with RESULT.open() as file:
            kept = {(row["calculator"], row["dtype"]): [row[c] for c in COLUMNS] for row in csv.DictReader(file)}
    for name, (_, package) in CALCULATORS.items():
        if options.only.lower() not in name.lower():
            continue
        for dtype in options.dtypes:
            # In a process of its own, as the packages change torch's global state.
            command = [sys.executable, __file__, "--one", name, dtype, "--steps", str(options.steps)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{name}, {dtype}: {done.stderr}")
            row = done.stdout.splitlines()[-1].split(",")
            row = [name, distribution(package).version, dtype, *row, options.machine, torch.__version__]
            kept[name, dtype] = [*row, str(datetime.date.today())]
            print(*kept[name, dtype], flush=True)
            with RESULT.open("w", newline="") as file:
                csv.writer(file).writerows([COLUMNS, *(kept[key] for key in sorted(kept))])


if __name__ == "__main__":
    main()
