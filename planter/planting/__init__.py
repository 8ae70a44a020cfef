"""Channels planted into a network and trained beside it; rounds of them."""
