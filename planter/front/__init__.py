"""Points and what they are compared by; fronts, and what is read off them."""
