"""The job: its parameters, its graph, and the commands that read what it wrote."""

import logging

# Beam warns of libraries for other clouds while it is imported, before anybody could ask it not to.
logging.getLogger().addHandler(logging.NullHandler())
