"""How long networks take, and where that is kept."""
