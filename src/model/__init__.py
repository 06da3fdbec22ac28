"""Models, losses and metrics: tensors in, tensors out. No files, logs, seeds, devices or config here."""
