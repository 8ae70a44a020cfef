"""INT8: static quantisation, and fine-tuning of networks that lose accuracy by it."""
