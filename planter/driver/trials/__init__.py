"""What a trial is: its job, its network, its bounds and its budget."""
