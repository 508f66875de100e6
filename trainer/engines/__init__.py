"""What spreads a step over processes, and how a step changes the weights."""
