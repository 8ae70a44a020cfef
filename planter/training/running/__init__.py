"""What a training runs in: its precision, and whether its network is compiled."""
