"""The parts of Deploy: what is released and how it is asked, and the two shapes in which it serves."""
