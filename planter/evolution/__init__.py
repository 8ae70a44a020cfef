"""Edits: a trained network made into another that starts from its weights."""
