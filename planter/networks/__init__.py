"""From an architecture to a module, and from a module to a file."""
