"""Which image comes when: parts of a split, and the order of an epoch."""
