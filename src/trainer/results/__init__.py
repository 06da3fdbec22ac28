"""What a trained model leaves: reports, predictions, files for other programs."""
