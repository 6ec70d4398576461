"""How a model is loaded and asked, one file per kind; a handler imports what the version's environment has."""
