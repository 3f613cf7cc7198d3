"""Files: atomic writes, strict readers, the journal, scores, coins and the run folder. Interprets nothing."""
