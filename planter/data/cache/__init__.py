"""Decoded images: decoded in parallel, kept in the user's cache folder, or decoded as asked for."""
