"""The papers' claims about utility, one row each, measured with this library's trainers.

``python benchmarks/findings ROW`` runs a row and resumes it; ``--table`` writes ``docs/findings.md``.
"""
