"""A study looked over before anything is trained: its data, networks, bounds and time."""
