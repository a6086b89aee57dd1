"""From a picture to the tensor that a backbone sees; training and serving share these files."""
