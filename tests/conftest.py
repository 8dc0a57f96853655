"""What tests of several rooms share."""

from hypothesis import settings

# the same examples on every run; a busy machine is not a failure
settings.register_profile("llmbench", derandomize=True, deadline=None)
settings.load_profile("llmbench")
