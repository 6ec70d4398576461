"""One file for each revision. Released ones never change."""
