"""A built network on the compiled CPU kernels: a transform, of which the network knows nothing."""
