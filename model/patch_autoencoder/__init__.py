"""Stage 1 of faces: one patch to one code and back, and what codes are made with."""
