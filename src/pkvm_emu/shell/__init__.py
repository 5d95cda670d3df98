"""A small POSIX-like shell whose files, modules and processes are those of an emulated system."""
