"""What one step trains, an evaluation measures and a picture shows."""
