"""The files of a job: what is read, and what is written."""
