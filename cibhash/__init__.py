"""CIBHash: unsupervised hashing with a contrastive information bottleneck (arXiv 2105.06138)."""

__version__ = "0.1.0"
