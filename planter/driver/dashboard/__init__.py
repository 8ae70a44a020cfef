"""Optuna's dashboard over a run, with what planter knows beside it."""
