"""Pure: SQL text and facts in, verdict and rewrite out. No I/O, no clock, no randomness."""
