"""The test report: numbers on a page that says how far they can be trusted."""
