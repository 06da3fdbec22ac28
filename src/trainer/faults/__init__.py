"""Steps that go wrong: found, told, undone, or cut into smaller ones."""
