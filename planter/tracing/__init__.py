"""Any PyTorch network: which channels belong together, and the same network with other widths."""
