"""The only sender of HTTP to the outside; refuses private addresses unless the administrator allows them."""
