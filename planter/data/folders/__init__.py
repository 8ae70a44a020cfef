"""Images in folders, one a class."""
