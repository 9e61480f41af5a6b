"""kdscale: distil a BERT cross-encoder ranker into a student that is about nine times faster."""

__version__ = "0.1.0"
