"""Model weights: opening them by what users type, reading files by tensor, the embedded model."""
