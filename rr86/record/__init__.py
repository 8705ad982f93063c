"""Recording runs of a guest into traces."""
