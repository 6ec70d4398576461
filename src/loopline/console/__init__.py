"""What a browser sees, rendered on the server."""
