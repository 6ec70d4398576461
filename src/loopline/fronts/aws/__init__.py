"""Scripts written for SageMaker: requests of AWS's SDKs and command line, read and answered by AWS's service models.

A server does with an operation's input what a client does with its output, so that botocore's parsers and serializers
serve from this side. ``app`` serves, ``table`` lists what is served; modules named by a noun hold the handlers: each
takes a call and a dict in the shape of the operation's input, asks ``control``, and gives a dict in the shape of its
output.
"""
