"""What a runner raises; apart from the runners, so that to catch it imports none of them."""


class RunnerError(Exception):
    """The job can't be run there: one line that says what was expected, what was there, and what to do."""
