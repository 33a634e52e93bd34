"""Files in, files out: every row of large inputs classified, nothing lost, and a job that was killed goes on exactly.

A process that reads imports this package without torch; what answers is imported where it is needed.
"""
