"""The paper's tables: protocols, published numbers, and the rows that this project can run."""
