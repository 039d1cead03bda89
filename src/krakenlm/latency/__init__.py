"""Time to first token: measured, alone on the machine."""
