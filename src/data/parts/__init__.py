"""Train, val, test: which rows go where, and what is known of them."""
