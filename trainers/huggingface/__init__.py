"""Private training through Hugging Face's Trainer."""
