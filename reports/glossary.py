"""Words that a certificate uses in a sense of its own."""

from __future__ import annotations

_TEXT = """
accountant: A program that computes ε from a ledger. A certified one proves its bound for that ledger.
AUC: How often an inserted canary scores above one that was left out: 0.5 is guessing, 1 is perfect.
canary: An invented record. A coin decided whether it entered the training data, so that leakage can be measured.
ceiling: The bound that an attack right about every guess would have given, with this many canaries and guesses.
coin: The fair, secret, independent draw that put one canary in or left it out.
commitment: A digest published before the coins are opened, which only these coins fit.
copies: How often an inserted canary stands in the data. With k copies an attack concerns groups of k records.
declared mechanism: The noise, sampling and number of steps that the ledger records.
δ (delta): The probability that the factor e^ε does not cover. It has to be far below 1 ÷ number of records.
ε (epsilon): One unit's presence multiplies the probability of any outcome by at most e^ε, apart from δ.
examination: Tests of the training step from inside, on invented records; each states the fault sizes it excludes.
guess: The attack's answer, in or out, for a canary. How many are guessed is fixed before training.
head of the ledger: The digest of its last line. Each line holds the digest of the one before it.
in-run canary: A fictitious record of one coordinate, added to a step after clipping, which every noisy update shows.
ledger: The trainer's own record of the noisy steps, from which ε is computed.
level: How far the evidence reaches: 0 claimed, 1 accounted, 2 + examined, 3 + audited with power, 4 + countersigned.
line: One of four kinds of evidence: accounting, implementation, released model, origin.
normaliser: The constant that the noisy sum is divided by. It must not depend on the private records.
null scores: Scores that do not tell inserted from left-out canaries: a dead attack looks like a private model.
positive control: A run with a planted fault, attacked in the same way to see whether the attack notices it.
power: How often an attack would raise the alarm at a run with a named fault.
statement: The content of the certificate; its digest names exactly this content.
verdict's bound: The attack's bound at the confidence that leaves the verdict its share of false alarms.
"""

GLOSSARY: tuple[tuple[str, ...], ...] = tuple(tuple(line.split(": ", 1)) for line in _TEXT.strip().splitlines())
"""Terms in alphabetical order, each with one or two sentences."""
