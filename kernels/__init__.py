"""Device kernels, per op ``<op>.cuh`` (CUDA) and ``<op>.py`` (Triton): pointers, no torch.
Installed as ``hamfast.kernels``."""
