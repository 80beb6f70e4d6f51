"""The method at scale: Ray Train, Ray Data, Ray Serve, storage and manifests."""
