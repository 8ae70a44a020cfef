"""Who proposes trainings: what a study names, planting, sampling; `registry` lists them."""
