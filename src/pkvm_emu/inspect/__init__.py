"""What a vendor module's binary is, found without running it."""
