"""What changes training images at random, one file for each kind of change."""
