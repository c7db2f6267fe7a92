"""The PostgreSQL door, and the protocol client that both doors reach the upstream by."""
