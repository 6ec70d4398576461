"""The data plane and the one public port; imports only domain, config and errors."""
