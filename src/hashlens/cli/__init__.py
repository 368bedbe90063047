"""The command line: one file a noun; parses, calls the library, prints."""
