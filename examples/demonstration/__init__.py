"""What demonstrations share: the screen, the installation that they start, and their beginning and end."""
