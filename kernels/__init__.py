"""Device kernels, one ``<op>.cuh`` per op: plain pointers, no torch. Installed as ``hamfast.kernels``."""
