"""The one path that every statement takes, whichever door it came in by."""
