"""What a picture file's own bytes tell before Pillow opens it, one file per format."""
