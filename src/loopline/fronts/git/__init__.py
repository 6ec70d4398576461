"""The platform's own git remote: authenticated smart HTTP over git http-backend."""
