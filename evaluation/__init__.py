"""How good a trained model is: features, scores, memorization, likelihood."""
