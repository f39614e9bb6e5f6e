"""Using a model: opening a run, evaluating, predicting, generating."""
