"""What is installed from this tree: the wheel, and the image that the Dockerfile describes."""
