"""The commands: each parses its options, calls the library, and says where the result is."""
