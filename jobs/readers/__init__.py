"""Readers: input files in the users' formats, read in partitions on the workers."""
