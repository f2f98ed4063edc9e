"""The ground floor: files, checkpoints, run folders, devices, ranks, keyed randomness."""
