"""The machine beneath: disk, memory, paths, torch's state."""
