"""What a prepared folder holds, and the stream of batches that is read from it."""
