"""What stands around the package: images, stacks, engine, and in `supply` the papers of an image."""
