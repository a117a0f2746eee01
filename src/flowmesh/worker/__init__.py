"""A stateless worker: syncs with the server, runs batches in child processes, keeps nothing."""
