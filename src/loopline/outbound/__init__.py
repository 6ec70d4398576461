"""The only sender of HTTP and e-mail to the outside; refuses private addresses unless the administrator allows them."""
