"""One network made from another: inherited, expanded, frozen."""
