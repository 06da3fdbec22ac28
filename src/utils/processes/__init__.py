"""The processes of one run: how they start, find each other, and what they tell each other."""
