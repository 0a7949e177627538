"""Registers, stack and spills of every CUDA kernel, as nvcc's assembler reports them.

    python bench/compile_table.py

Writes bench/results/compile_table.csv. No GPU is needed.
A test compares: it fails if a kernel spills that did not.
"""

import csv
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from cases import EDGE_PRODUCTS, GPU_PRODUCTS, RADIAL_WIDTH

from hamfast.ops.multilinear import kernel_source, make_tables
from hamfast.records.choices import Layout, Slot, Storage
from hamfast.records.tables import ChannelVariant

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "bench" / "results" / "compile_table.csv"
ARCHITECTURES = (80, 90, 100)
COLUMNS = ["kernel", "case", "architecture", "registers", "shared_bytes", "stack_bytes", "spill_stores", "spill_loads"]

# Kernels that need no plan: csrc/*_cuda.cu launches these.
FIXED = """
#include "edge_frame.cuh"
#include "edge_einsum.cuh"
#include "edge_update.cuh"
#include "general.cuh"
#include "sparse_map.cuh"
#include "sum_chunks.cuh"
#include "symmetric_contraction.cuh"
#include "weighted_sum.cuh"
namespace hamfast {
#define INSTANTIATE(T)                                                             \\
  template __global__ void rotate_kernel<true, T>(FrameCall<T>, int64_t);          \\
  template __global__ void rotate_kernel<false, T>(FrameCall<T>, int64_t);         \\
  template __global__ void matrix_groups_kernel<T>(MatrixCall<T>);                 \\
  template __global__ void edge_einsum_kernel<T>(EdgeEinsumCall<T>);                \\
  template __global__ void sparse_map_kernel<T>(SparseMapCall<T>);                 \\
  template __global__ void general_kernel<T>(GeneralCall<T>, int64_t, T*);             \\
  template __global__ void contraction_entries_kernel<T>(const ContractionEntry*, const T*, const int64_t*, \\
                                                         const T*, int64_t, T*, int64_t, int64_t, int64_t); \\
  template __global__ void contraction_kernel<T, true>(ContractionCall<T>, const T*, T*);    \\
  template __global__ void contraction_kernel<T, false>(ContractionCall<T>, const T*, T*);    \\
  template __global__ void contraction_species_kernel<T, true>(ContractionCall<T>, const T*, T*); \\
  template __global__ void contraction_species_kernel<T, false>(ContractionCall<T>, const T*, T*); \\
  template __global__ void contraction_transpose_kernel<T>(const T*, T*, int64_t, int64_t, int64_t); \\
  template __global__ void contraction_coefficients_kernel<T>(ContractionCall<T>, const T*, const T*, T*); \\
  template __global__ void add_rows_kernel<T>(const T*, int64_t, int64_t, T*);
INSTANTIATE(float)
INSTANTIATE(double)
#define INSTANTIATE_SUM(T, Stored, Out)                                                                    \\
  template __global__ void weighted_sum_kernel<T, Stored, Out, false>(WeightedSum<T, Stored, Out>);         \\
  template __global__ void weighted_sum_kernel<T, Stored, Out, true>(WeightedSum<T, Stored, Out>);
#define INSTANTIATE_STORED(T, Stored)                                                                  \\
  template __global__ void attention_scores_kernel<T, Stored, pass_forward>(AttentionCall<T, Stored>);  \\
  template __global__ void attention_scores_kernel<T, Stored, pass_backward>(AttentionCall<T, Stored>); \\
  template __global__ void attention_scores_kernel<T, Stored, pass_double>(AttentionCall<T, Stored>);   \\
  INSTANTIATE_SUM(T, Stored, Stored)                                                                     \\
  template __global__ void edge_update_kernel<T, Stored>(EdgeUpdateCall<T, Stored>);                    \\
  template __global__ void edge_update_gradients_kernel<T, Stored, false>(EdgeUpdateCall<T, Stored>);   \\
  template __global__ void edge_update_gradients_kernel<T, Stored, true>(EdgeUpdateCall<T, Stored>);
INSTANTIATE_STORED(float, float)
INSTANTIATE_STORED(double, double)
INSTANTIATE_STORED(float, BFloat16)
INSTANTIATE_STORED(float, Float16)
INSTANTIATE_SUM(float, BFloat16, float)
INSTANTIATE_SUM(float, Float16, float)
}
"""

# Operands, tangents and wanted results of a call, as bits of x, y, w, g.
CALLS = {"forward": (1, 0b0111, 0, 0b1000), "backward": (0, 0b1111, 0, 0b0111), "double": (0, 0b1111, 0b0111, 0b0111)}


def channel_header(case, call, dtype=torch.float32, hidden=0):
    """The plan header of a case: channel-wise, or the coupled pairs of its uvw paths.

    ``hidden``: the length of the hidden rows of which the kernel makes weights; 0 if it makes none.
    """
    pairs = case.mode == "uvw"
    forward, operands, tangents, wanted = CALLS[call]
    if pairs:  # no weights there
        operands, tangents, wanted = (bits & ~(1 << Slot.W) for bits in (operands, tangents, wanted))
    tables = make_tables(case.plan(), "pairs" if pairs else "channel", dtype, torch.device("cpu"))
    variant = ChannelVariant(
        forward=forward,
        operands=operands,
        tangents=tangents,
        wanted=wanted,
        storage=Storage.FLOAT64 if dtype == torch.float64 else Storage.FLOAT32,
        x_layout=Layout.IR_MUL,
        g_layout=Layout.BLOCKS if pairs else Layout.IR_MUL,
        shared_weights=int(pairs),
        hidden=hidden,
        passes=3,
    )
    text, _ = kernel_source(tables, variant)
    return bytes(text.numpy()).decode()


def jobs():
    """(case, source, plan header) of everything that is compiled."""
    found = [("", FIXED, "")]
    alike, unlike = GPU_PRODUCTS[0], GPU_PRODUCTS[-1]
    chosen = [(alike, call) for call in CALLS] + [
        (unlike, "backward"),
        (unlike, "double"),
        (EDGE_PRODUCTS[0], "backward"),
    ]
    for case, call in chosen:
        found.append((f"{case.name} {call} float32", '#include "channel.cuh"\n', channel_header(case, call)))
    for case, call in [(alike, "forward"), (alike, "backward"), (unlike, "forward"), (unlike, "backward")]:
        header = channel_header(case, call, hidden=RADIAL_WIDTH)
        found.append((f"{case.name} {call} with radial layer float32", '#include "channel.cuh"\n', header))
    header = channel_header(alike, "backward", torch.float64)
    found.append((f"{alike.name} backward float64", '#include "channel.cuh"\n', header))
    return found


def compile_one(case, source, header, architecture):
    """Rows of the table for one file and architecture."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "kernel.cu").write_text(source)
        (folder / "hamfast_plan.h").write_text(header)
        command = ["nvcc", "-std=c++20", f"-arch=sm_{architecture}", "-cubin", "-Xptxas", "-v", f"-I{ROOT / 'kernels'}"]
        command += [f"-I{folder}", str(folder / "kernel.cu"), "-o", str(folder / "kernel.cubin")]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{case or 'fixed kernels'} did not compile for sm_{architecture}:\n{done.stderr[:4000]}")
    rows = []
    for entry in re.split(r"Compiling entry function '", done.stderr)[1:]:
        symbol = entry.split("'")[0]
        names = re.findall(r"\d+([a-z][a-z_]*kernel|hamfast_channel)", symbol) or [symbol]
        dtype = "float64" if re.search(r"kernelI(Lb\dE)?d", symbol) else "float32"
        stored = re.search(r"\d(B?Float16)E(f)?", symbol)
        if stored:
            dtype = stored[1].lower() + (" to float32" if stored[2] else "")
        suffix = {"ILb1": " into", "ILb0": " out of"}.get(symbol[symbol.find("kernel") + 6 :][:4], "")
        attention = re.search(r"attention_scores_kernelI(?:ff|dd|fNS_\dB?Float16E)Li(\d)", symbol)
        if "weighted_sum_kernel" in symbol and "Lb1E" in symbol:
            suffix = " of activations"
        if "edge_update_gradients_kernel" in symbol:
            suffix = " backward" if "Lb0E" in symbol else " double"
        if attention:
            suffix = (" forward", " backward", " double")[int(attention[1])]

        def number(pattern, text=entry):
            match = re.search(pattern, text)
            return int(match[1]) if match else 0

        rows.append(
            {
                "kernel": names[0] + suffix,
                "case": case or dtype,
                "architecture": f"sm_{architecture}",
                "registers": number(r"Used (\d+) registers"),
                "shared_bytes": number(r"(\d+) bytes smem"),
                "stack_bytes": number(r"(\d+) bytes stack frame"),
                "spill_stores": number(r"(\d+) bytes spill stores"),
                "spill_loads": number(r"(\d+) bytes spill loads"),
            }
        )
    return rows


def compile_all(workers=2):
    """The rows of the table, sorted; ``workers`` compilers run at a time."""
    todo = [(*job, architecture) for job in jobs() for architecture in ARCHITECTURES]
    with ThreadPoolExecutor(workers) as pool:
        rows = [row for found in pool.map(lambda job: compile_one(*job), todo) for row in found]
    return sorted(rows, key=lambda row: (row["kernel"], row["case"], row["architecture"]))


def main():
    """Runs the command line."""
    rows = compile_all()
    with RESULT.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    print(f"{RESULT}: {len(rows)} rows, {sum(row['spill_stores'] > 0 for row in rows)} with spills")


if __name__ == "__main__":
    main()
