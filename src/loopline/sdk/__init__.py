"""What users import. `pipeline` is standard library only: it marks functions; `client` speaks the native REST."""
