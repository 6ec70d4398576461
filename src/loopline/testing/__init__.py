"""Contract tests of the ports, fakes and a manual clock, shipped for those who write a backend."""
