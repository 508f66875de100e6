"""Trained models over HTTP: what is asked is read within limits, gathered into batches, and answered as images."""
