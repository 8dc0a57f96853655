"""The embedded model: 2.75 million parameters, trained by tools/train_embedded.py; package data."""
