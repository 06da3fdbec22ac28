"""What of a run is kept, how it reaches the disk whole, and how a run goes on from it."""
