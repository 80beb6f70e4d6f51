"""What changes when another encoder makes the codes: drift between two code tables, and whether to switch."""
