"""Settings of the property tests."""

from hypothesis import settings

# The first example pays for what a module loads or compiles, and other processes for the rest: in
# another order, or on a busy machine, any limit of time fails.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
