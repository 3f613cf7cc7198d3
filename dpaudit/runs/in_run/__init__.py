"""The in-run audit of a run: committed before the first step, watching every step, opened when the run has ended."""
