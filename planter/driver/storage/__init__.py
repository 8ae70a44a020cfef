"""A run's books in an Optuna storage: opened, held by one driver, written though it goes away."""
