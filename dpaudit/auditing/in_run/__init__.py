"""The in-run audit: canaries inside the clipped sums, and the energy of the releases, seen by who sees every update."""
