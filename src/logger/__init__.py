"""Where numbers go: run folders, event files, tables, the console. A tensor that comes here is a bug."""
