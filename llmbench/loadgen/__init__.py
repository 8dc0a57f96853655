"""The measuring client: the load loop, the HTTP client that stamps every read, the journal."""
