"""Which axes of which tensors a width couples, asked of a network itself."""
