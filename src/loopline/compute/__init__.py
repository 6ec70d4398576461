"""Where jobs run: the ComputeBackend port, its backends, and the environments they run in."""
