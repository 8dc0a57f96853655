"""Pure functions from recorded instants to numbers; no I/O."""
