"""How much property tests draw. `make test` draws the same each time; `make torture` other and far more examples."""

from hypothesis import settings

# Of a test that doesn't say otherwise, in `make test`.
_USUAL = 100
_TORTURE = 20

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=_USUAL)
settings.register_profile("torture", deadline=None, max_examples=_USUAL * _TORTURE, print_blob=True)
# --hypothesis-profile=torture comes later, and wins.
settings.load_profile("ci")


def examples(count: int, **more) -> settings:
    """Returns settings of a test that draws so many examples in `make test`, and in proportion elsewhere."""
    return settings(max_examples=count * settings.default.max_examples // _USUAL, **more)
