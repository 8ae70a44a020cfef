"""A run's folder: its settings, its documents, and how others read them."""
