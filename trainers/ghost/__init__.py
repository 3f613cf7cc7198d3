"""Ghost clipping: per-example clipped gradient sums without per-example gradients."""
