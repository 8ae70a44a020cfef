"""Training forms of kernels: settings, parametrizations, blocks."""
