"""The host side of the Triton kernels: from tensors to launches.

Kernels are in ``hamfast.kernels``, the choice of backend is in ``hamfast.ops.backend``.
Only what is called here imports Triton.
"""
