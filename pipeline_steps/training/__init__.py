"""The fine-tuning engine: a decoder whose forward and backward are written out, its data, its survival, its output."""
