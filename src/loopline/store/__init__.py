"""Facts on disk. SQL stands here and in control only; a status changes in `records.move` alone."""
