"""Per-example losses and records of language tasks."""
