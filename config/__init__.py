"""What differs between one deployment and another: typed settings and the files that hold their values."""
