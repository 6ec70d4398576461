"""Translation only: a front knows a dialect and the use cases, and no other front."""
