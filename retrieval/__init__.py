"""Search a folder of images by image."""
