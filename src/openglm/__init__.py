"""openglm: run, train and serve the whole GLM family from one small package."""

__version__ = "0.1.0"
