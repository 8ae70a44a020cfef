"""Networks that were not written for planter: of other packages, and plain ones of a user's."""
