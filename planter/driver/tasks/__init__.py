"""What a worker does with a job, a file a kind; `run_job` finds the one that fits."""
