"""Files on disk, keyed randomness, optimization: what the scripts need besides the science."""
