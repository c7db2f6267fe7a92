"""The chained store: append, read, verify, search. Synchronous; knows no SQL policy."""
