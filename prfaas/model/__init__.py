"""Networks, weights and kernels, one file per family."""
