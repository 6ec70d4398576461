"""What moves by itself inside control: leased tasks and ticks, as tables."""
