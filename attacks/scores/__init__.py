"""Membership scores, one attack a file. Higher = member."""
