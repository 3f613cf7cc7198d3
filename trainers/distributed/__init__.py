"""Private training over several processes."""
