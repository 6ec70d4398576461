"""What runs inside job and model-server processes: standard library only, nothing else of loopline, entered by path.

It is never installed into an environment.
"""
