"""What a trained model can do, and the files in which it is kept."""
