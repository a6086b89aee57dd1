"""Scores, comparisons and records: how a number of this project is made."""
