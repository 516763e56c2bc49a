"""The job as a person runs it, a process of its own, against real servers; what it wrote against what was created."""
