"""What the scripts of launch/ share."""
