"""The search itself: the only part of planter that talks to Optuna and Ray."""
