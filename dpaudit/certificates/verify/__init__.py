"""Re-deriving a certificate from its evidence, one topic a file."""
