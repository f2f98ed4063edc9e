"""The parts of train.py: set-up, state, schedule, validation, logging, resuming."""
