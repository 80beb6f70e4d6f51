"""Plans an index: what a sample of its codes and a measurement on the spot say of many more of them."""
