"""What a study file and a search space may say."""
