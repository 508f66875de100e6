"""Data sets that lie in tar files of other tools (WebDataset, img2dataset): found, indexed, read in blocks."""
