"""One training: its recipe, its losses, its loop and its step."""
