"""Showing results: console, files. rich and pandas live here and in `cli` only."""
