"""What Python, C++ and Triton must agree on, stated once.

- :mod:`hamfast.records.ops`: each op of ``torch.ops.hamfast``, with its operands by name.
- :mod:`hamfast.records.tables`: the columns of the integer tables that kernels read.
- :mod:`hamfast.records.choices`: numbers that stand for a choice, such as a layout.

Python reads these records when it runs.
C++ reads ``kernels/records.cuh`` and ``csrc/common/op_records.h``, which ``python -m
hamfast.records.write``
makes from them.
Nothing here imports torch: the build runs it, too.
"""
