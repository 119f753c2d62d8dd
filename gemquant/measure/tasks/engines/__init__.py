"""What answers lm-eval's requests: one file per runtime, all with the interface of ``engine``."""
