"""Binary codes: packing, reference search, kernels. NumPy and numba only."""
