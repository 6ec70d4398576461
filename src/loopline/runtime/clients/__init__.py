"""What ``loopline env`` puts in front of Python's path for scripts that use AWS's SDKs. Standard library only; nothing
of loopline imports it: Python runs ``sitecustomize`` when it starts."""
