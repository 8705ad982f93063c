"""What became of translation blocks, as the trace tells it."""
