"""Canaries: whole records inserted by fair coins, their generators and the secret file."""
