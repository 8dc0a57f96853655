"""Comparing captured rows with base rows, and saying what differs where."""
