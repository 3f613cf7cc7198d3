"""The privacy language: stages, ledgers, guarantees, errors and validators. Imports nothing of ours."""
